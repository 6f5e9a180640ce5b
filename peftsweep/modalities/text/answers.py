r"""Find the final answer in worked text and compare two answers exactly.

One real case: GSM8K's label ends with `#### 1,200`, a fine-tuned model with `... so she pays $\boxed{1200}$ dollars.`
Both are 1200 here; a comparison of strings calls the second one wrong.

The reference benchmark's delimiters are kept, so that both read the same spot of a text:
https://github.com/huggingface/peft/blob/main/method_comparison/MetaMathQA/utils.py
"""

import re
from fractions import Fraction

# A changed rule changes scores: raise this, so that results of two parsers are not ranked against each other.
VERSION = 1

_DELIMITER = re.compile(r"the (?:final )?answer is\b[\s:]*|####[\s:]*|\\(?:boxed|fbox)\s*(?=\{)", re.IGNORECASE)
_SENTENCE_END = re.compile(r"[.!?]+(?=\s|$|[A-Z][a-z])|[\r\n]|<\||</")

# Applied in this order to what follows a delimiter.
_REWRITES: list[tuple[re.Pattern[str], str]] = [
    (re.compile(r"<<.*?>>"), ""),  # GSM8K's calculator notes
    (re.compile(r"[\u2212\u2013\u2014\ufe63\uff0d]"), "-"),  # minus signs and dashes
    (re.compile(r"(?<=[0-9])(?:\{,\}|\\[,;:! ]|[\u00a0\u2009\u202f])(?=[0-9]{3}(?![0-9]))"), ","),  # 1{,}200, 1\,200
    (re.compile(r"\\[,;:! ]|[\u00a0\u2009\u202f~]"), " "),
    (re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}"), r" \1 "),
    (re.compile(r"\\[dt]?frac\s*\{\s*(-?[0-9.,]+)\s*\}\s*\{\s*(-?[0-9.,]+)\s*\}"), r" \1/\2 "),
    (re.compile(r"\\[dt]?frac\s*([0-9])\s*([0-9])"), r" \1/\2 "),
    (re.compile(r"\\(?:left|right)(?![a-z])"), ""),
    (re.compile(r"\^\s*\{?\s*\\circ\s*\}?|\\degree"), "°"),
    (re.compile(r"\\approx"), "≈"),
    (re.compile(r"\\[()\[\]]"), ""),
    (re.compile(r"\b(?:US|USD|EUR|GBP)\s?(?=[$€£]?[0-9])"), ""),
    (re.compile(r"\\?[$€£¥]|\*\*|__|`"), ""),  # money and inline mathematics share the dollar sign: both go
    (re.compile(r"\\%"), "%"),
    (re.compile(r"(?<=[0-9])\s+and\s+(?=[0-9]+/[0-9])"), " "),  # 1 and 1/2
    (re.compile(r"(?<=[0-9])\s+and\s+(?:a|one)\s+half\b"), " 1/2"),
    (re.compile(r"\b(?:minus|negative)\s+(?=[0-9])", re.IGNORECASE), "-"),
]
_VULGAR_FRACTIONS = {"¼": "1/4", "½": "1/2", "¾": "3/4", "⅓": "1/3", "⅔": "2/3", "⅕": "1/5", "⅙": "1/6", "⅛": "1/8"}

_DECIMAL = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]{1,2}(?![0-9]))?|\.[0-9]+"
_NUMBER = re.compile(
    rf"(?<![\w.,^/])(?P<sign>[-+]\s*)?(?:(?P<whole>[0-9]+)\s+(?=[0-9]+\s*/))?"
    rf"(?P<numerator>{_DECIMAL})(?:\s*/\s*(?P<denominator>-?(?:{_DECIMAL})))?(?![0-9,.]*[0-9])"
)
_MAX_NUMBER_CHARACTERS = 200  # a model that babbles digits must not meet Python's limit on int(str), a ValueError
_SCALES = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_SCALE = re.compile(rf"\s*({'|'.join(_SCALES)})\b", re.IGNORECASE)

# What may follow a number without making it part of something else. `5x`, `2\sqrt{3}`, `3:30`, `12 - 5` don't match.
_AFTER_NUMBER = re.compile(
    r"""\s*(?:%|°\s*[CF]?)?(?:
        [.,;:]?\s*$                                                # nothing
      | [,;:]\s+(?=[A-Za-z])                                       # 12, which is ...
      | \s*[-/]?\s*(?!(?:pi|sqrt)\b)(?:[A-Za-z]{2,}|[aghlmsL]\b)   # 12 dollars, 5 km, 12-inch, 5/hour, 3 m
      | \s+\((?=[A-Za-z=])                                         # 12 (twelve)
    )""",
    re.VERBOSE,
)
# `12 hours and 30 minutes`, `3 apples, 4 pears`, `5 to 10`: several numbers make one answer.
_SECOND_NUMBER = re.compile(r"(?:,\s|;|&|-\s|\b(?:and|or|to|but)\b)\s*[-+]?\.?[0-9]", re.IGNORECASE)
_WORDS_BEFORE = re.compile(
    r"(?!.*\b(?:not|no|than|least|most|between|never)\b)(?:[A-Za-z'\u2019]+[,:]?\s+)*", re.IGNORECASE
)


def parse_answer(text: str) -> str | None:
    r"""The final answer stated in `text`, as `normalise_answer` writes it; None where none is stated.

    An answer is stated by `The answer is`, `The final answer is`, `####` or `\boxed{}`. The last statement counts, or
    the one before where the last is empty (generation cut off by its token limit).
    """
    for delimiter in reversed(list(_DELIMITER.finditer(text))):
        stated = text[delimiter.end() :]
        if delimiter.group().startswith("\\"):
            stated = _braced(stated)
        answer = normalise_answer(stated)
        if answer:
            return answer
    return None


def is_correct(generated: str, target: str) -> bool:
    """Whether `generated` states the answer of `target`, which is worked text with a delimiter or the bare answer."""
    answer = parse_answer(generated)
    return answer is not None and answer == (parse_answer(target) or normalise_answer(target))


def normalise_answer(text: str) -> str:
    """The one spelling of an answer: `12`, `-2.5` or `1/3` for a number, else its first sentence in small letters.

    Units, currencies and percent signs are dropped (GSM8K's labels leave them out, so 50% is 50), mixed fractions are
    added up, `hundred` to `trillion` multiply. Number words (`twelve`) stay words. Empty where the text says nothing.
    """
    sentence = _SENTENCE_END.split(_rewrite(text), maxsplit=1)[0].strip()
    number = _read_number(_right_hand_side(sentence))
    if number is not None:
        return _write_number(number)
    # Spaces around symbols carry no meaning: `( 3, 4 )` is `(3,4)`.
    tight = re.sub(r"\s*([^\w\s])\s*", r"\1", sentence.casefold())
    return " ".join(tight.split()).strip(".,;:!?\"'*")


def _braced(text: str) -> str:
    """What stands between the brace that opens `text` and its partner; empty where the partner was cut off."""
    depth = 0
    for position, character in enumerate(text):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth == 0:
            return text[1:position]
    return ""


def _rewrite(text: str) -> str:
    for character, fraction in _VULGAR_FRACTIONS.items():
        text = text.replace(character, f" {fraction}")
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    return text.strip(" \t\r\n:=≈")


def _right_hand_side(sentence: str) -> str:
    """`x = 5` and `9 * 2 = 18` state what is on the right; `x = 1, y = 2` states two things and is left alone."""
    left, equals, right = sentence.rpartition("=")
    if not equals or re.search(r"[,;](?![0-9]{3})|\band\b", left) or _read_number(right.strip(" ≈")) is None:
        return sentence
    return right.strip(" ≈")


def _read_number(sentence: str) -> Fraction | None:
    """The number that a sentence states, or None where it states something else or several numbers."""
    match = _NUMBER.search(sentence)
    if match is None or len(match.group()) > _MAX_NUMBER_CHARACTERS:
        return None
    before, after = sentence[: match.start()], sentence[match.end() :]
    scale = _SCALE.match(after)
    if scale:
        after = after[scale.end() :]
    if not _WORDS_BEFORE.fullmatch(before) or not _AFTER_NUMBER.match(after) or _SECOND_NUMBER.search(after):
        return None
    number = _match_value(match)
    return number * _SCALES[scale[1].lower()] if number is not None and scale else number


def _match_value(match: re.Match[str]) -> Fraction | None:
    denominator = Fraction((match["denominator"] or "1").replace(",", ""))
    if denominator == 0:
        return None
    magnitude = Fraction(match["numerator"].replace(",", "")) / denominator + int(match["whole"] or 0)
    return -magnitude if (match["sign"] or "").startswith("-") else magnitude


def _write_number(number: Fraction) -> str:
    """Decimal where the expansion ends, `p/q` in lowest terms where it doesn't."""
    remainder, places = number.denominator, 0
    while remainder % 10 == 0 or remainder % 2 == 0 or remainder % 5 == 0:
        remainder //= 10 if remainder % 10 == 0 else 2 if remainder % 2 == 0 else 5
        places += 1
    if remainder != 1:
        return f"{number.numerator}/{number.denominator}"
    digits = str(abs(number.numerator) * 10**places // number.denominator).rjust(places + 1, "0")
    whole, decimals = digits[: len(digits) - places], digits[len(digits) - places :].rstrip("0")
    return f"{'-' if number < 0 else ''}{whole}{'.' + decimals if decimals else ''}"
