from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peftsweep.modalities.text.answers import is_correct, normalise_answer, parse_answer

STATED = [
    # the delimiters
    ("The answer is: 16", "16"),
    ("The answer is 16", "16"),
    ("The final answer is: 16", "16"),
    ("The final answer is 16", "16"),
    ("So the answer is 16.", "16"),
    ("16 - 3 - 4 = <<16-3-4=9>>9 eggs.\n#### 18", "18"),
    ("####18", "18"),
    (r"so it is \boxed{12}", "12"),
    (r"so it is $\boxed{12}$.", "12"),
    (r"\boxed{\frac{3}{4}}", "0.75"),
    (r"\boxed{\text{12 dollars}}", "12"),
    (r"is equal to $4^2 = \boxed{16}$.The answer is: 16", "16"),
    (r"The answer is: $\boxed{1{,}200}$", "1200"),
    ("The answer is:\n12", "12"),
    ("**The final answer is:** 12", "12"),
    ("The answer is 5? No. The answer is 7", "7"),
    (r"\boxed{16}. The answer is:", "16"),
    (r"The answer is 7, so \boxed{7", "7"),
    # thousands
    ("The answer is: 1,200", "1200"),
    ("The answer is: 1200", "1200"),
    ("The answer is: 1,234,567.80", "1234567.8"),
    (r"The answer is: 1{,}200", "1200"),
    (r"The answer is: 1\,200", "1200"),
    ("The answer is: 1\u202f200", "1200"),
    # money
    ("The answer is: $12", "12"),
    ("The answer is: $12.50", "12.5"),
    (r"The answer is: \$1,200.00", "1200"),
    ("The answer is: US$12", "12"),
    ("The answer is: €12", "12"),
    ("The answer is: £12.", "12"),
    ("The answer is: 12€", "12"),
    ("The answer is: -$5", "-5"),
    ("The answer is: $-5", "-5"),
    # units and what trails
    ("The answer is 12 dollars", "12"),
    ("The answer is: 5 km", "5"),
    ("The answer is: 5km", "5"),
    ("The answer is: 3 m", "3"),
    ("The answer is: 90°", "90"),
    (r"The answer is: 90^\circ", "90"),
    ("The answer is: 3 apples.", "3"),
    ("The answer is: 12 dollars per day. That was easy.", "12"),
    ("The answer is: 12.The next question", "12"),
    ("The answer is: 12\n\nQuestion: 3 + 4?", "12"),
    ("The answer is: 12</s>", "12"),
    ("The answer is: 12, which is a dozen.", "12"),
    ("The answer is: 12 (twelve)", "12"),
    ("The answer is: 12 dollars for 3 days", "12"),
    ("The answer is John has 12 apples left.", "12"),
    ("The answer is a total of 12", "12"),
    ("The answer is: 12!", "12"),
    ("The answer is: 12 \u2014 as promised", "12"),
    # fractions
    ("The answer is: 3/4", "0.75"),
    ("The answer is: 1/3", "1/3"),
    ("The answer is: 2/6 of the cake", "1/3"),
    ("The answer is: 10/5", "2"),
    (r"The answer is: $\frac{3}{4}$", "0.75"),
    (r"The answer is: -\dfrac{1}{3}", "-1/3"),
    (r"The answer is: \frac34", "0.75"),
    ("The answer is: 1 1/2", "1.5"),
    ("The answer is: -1 1/3", "-4/3"),
    (r"The answer is: 1\frac{1}{2}", "1.5"),
    ("The answer is: 1½ hours", "1.5"),
    ("The answer is: 1 and 1/2 hours", "1.5"),
    ("The answer is: 12 and a half", "12.5"),
    # percents
    ("The answer is: 50%", "50"),
    (r"The answer is: $50\%$.", "50"),
    ("The answer is: 50 percent", "50"),
    # signs, zeros, decimals, scales
    ("The answer is: -7", "-7"),
    ("The answer is: \u22127", "-7"),
    ("The answer is: negative 7", "-7"),
    ("The answer is: +7", "7"),
    ("The answer is: -0", "0"),
    ("The answer is: 007", "7"),
    ("The answer is: 2.50", "2.5"),
    ("The answer is: 5.", "5"),
    ("The answer is: .5", "0.5"),
    ("The answer is: 1.5e3", "1500"),
    ("The answer is: 1.5 million dollars", "1500000"),
    # wrappers
    ("The answer is: **12**", "12"),
    ("The answer is: $12$", "12"),
    (r"The answer is: \(12\)", "12"),
    (r"The answer is: \[12\]", "12"),
    (r"The answer is: 12\text{ dollars}", "12"),
    (r"The answer is: $\mathbf{12}$", "12"),
    ("The answer is: `12`", "12"),
    ("The answer is: <<6*2=12>>12", "12"),
    # equations
    ("The answer is: x = 5", "5"),
    ("The answer is: $9 * 2 = 18", "18"),
    ("The answer is: 9 * 2 = $18 a day", "18"),
    # not one number
    ("The answer is: 2x + 3", "2x+3"),
    (r"The answer is: 2\sqrt{3}", r"2\sqrt{3}"),
    (r"The answer is: 3\pi", r"3\pi"),
    ("The answer is: (3, 4)", "(3,4)"),
    ("The answer is: 3 and 4", "3 and 4"),
    ("The answer is: 3, 4", "3,4"),
    ("The answer is: 5 to 10", "5 to 10"),
    ("The answer is: 5-10", "5-10"),
    ("The answer is: 12 hours and 30 minutes", "12 hours and 30 minutes"),
    ("The answer is: 3:30", "3:30"),
    ("The answer is: 12 - 5", "12-5"),
    ("The answer is: x = 1, y = 2", "x=1,y=2"),
    ("The answer is: less than 12", "less than 12"),
    ("The answer is: 12/0", "12/0"),
    ("The answer is: 12/5/2024", "12/5/2024"),
    ("The answer is: 1,20", "1,20"),
    ("The answer is: 5 2", "5 2"),
    ("The answer is: Yes. It does.", "yes"),
    ("The answer is:  Blue   Whale", "blue whale"),
]


@pytest.mark.parametrize(("text", "answer"), STATED)
def test_stated_answer_is_found_and_normalised(text: str, answer: str) -> None:
    assert parse_answer(text) == answer


@pytest.mark.parametrize(
    "text", ["", "12", "She pays 12 dollars.", "The answer is", "The answer is: .", "#### ", r"\boxed{}", r"\boxed{12"]
)
def test_without_a_statement_there_is_no_answer(text: str) -> None:
    assert parse_answer(text) is None


@pytest.mark.parametrize(
    ("generated", "target"),
    [
        ("The answer is: 1,200", "#### 1200"),
        ("The answer is: 1200", "#### 1,200"),
        ("The answer is 12 dollars", "#### 12"),
        (r"\boxed{12}", "#### 12"),
        ("The answer is: 2.50", "2.5"),
        ("The answer is: 3/6", "1/2"),
        (r"The answer is: $\frac{3}{4}$", "The answer is: 0.75"),
        (r"The answer is: 2 \sqrt{3}", r"\boxed{2\sqrt{3}}"),
    ],
)
def test_equal_answers_in_different_spellings_are_correct(generated: str, target: str) -> None:
    assert is_correct(generated, target)


@pytest.mark.parametrize(
    ("generated", "target"),
    [
        ("12", "12"),  # nothing is stated
        ("The answer is: 0.333", "1/3"),
        ("The answer is: 5", "-5"),
        ("The answer is: 1.2", "1,200"),
        ("The answer is: 2x", "2"),
        ("The answer is: 12.0000000000000000000000001", "12"),  # equal as floats
        ("The answer is:", ""),
    ],
)
def test_different_answers_are_wrong(generated: str, target: str) -> None:
    assert not is_correct(generated, target)


def test_babbled_digits_are_text_and_no_error() -> None:
    babble = "7" * 5000  # above sys.get_int_max_str_digits()
    assert parse_answer(f"#### {babble}") == babble


def test_normalising_twice_changes_nothing() -> None:
    answers = [answer for _, answer in STATED]
    assert [normalise_answer(answer) for answer in answers] == answers


SPELLINGS = [
    "The answer is: {}",
    "the answer is {}.",
    "work work\n#### {}",
    r"thus $\boxed{{{}}}$.",
    "The final answer is **{}** dollars.\nNext line 3",
    "The answer is: ${}",
    r"The answer is: $x = {}$ and so on",
    "The answer is: {}%",
    "The answer is {} apples, which is 5 more than before",
]


@settings(deadline=None, derandomize=True)
@given(cents=st.integers(-(10**13), 10**13), spelling=st.sampled_from(SPELLINGS), commas=st.booleans())
def test_every_decimal_survives_every_spelling(cents: int, spelling: str, commas: bool) -> None:
    number = f"{'-' if cents < 0 else ''}{abs(cents) // 100:{',' if commas else ''}}.{abs(cents) % 100:02d}"
    answer = parse_answer(spelling.format(number))
    assert answer is not None
    assert Fraction(answer) == Fraction(cents, 100)


@settings(deadline=None, derandomize=True)
@given(numerator=st.integers(-(10**6), 10**6), denominator=st.integers(1, 10**6), latex=st.booleans())
def test_every_fraction_is_read_exactly(numerator: int, denominator: int, latex: bool) -> None:
    magnitude = rf"\frac{{{abs(numerator)}}}{{{denominator}}}" if latex else f"{abs(numerator)}/{denominator}"
    answer = parse_answer(f"The answer is: {'-' if numerator < 0 else ''}{magnitude}")
    assert answer is not None
    assert Fraction(answer) == Fraction(numerator, denominator)


@settings(deadline=None, derandomize=True)
@given(st.text(max_size=80))
def test_any_generated_text_is_parsed_without_an_error(text: str) -> None:
    parse_answer(f"The answer is: {text}")
