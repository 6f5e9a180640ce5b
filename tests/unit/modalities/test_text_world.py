import random
import re
from itertools import islice

import pytest

from peftsweep.modalities.text.answers import parse_answer
from peftsweep.modalities.text_world import (
    LARGEST,
    general_passages,
    make_fact,
    make_passage,
    make_problem,
    make_problems,
    pretraining_documents,
    split_of,
)

EQUATION = re.compile(r"(\d+) ([-+*]) (\d+) = (\d+)")
PROBLEMS = make_problems("train", 1500) + make_problems("valid", 300) + make_problems("test", 300)
DOCUMENTS = list(islice(pretraining_documents(seed=0), 20_000))


def equations(text: str) -> list[tuple[int, str, int, int]]:
    return [(int(left), sign, int(right), int(result)) for left, sign, right, result in EQUATION.findall(text)]


def is_right(left: int, sign: str, right: int, result: int) -> bool:
    return {"+": left + right, "-": left - right, "*": left * right}[sign] == result


def test_splits_are_disjoint() -> None:
    splits = [{problem.query for problem in make_problems(split, 300)} for split in ("train", "valid", "test")]
    assert len(set.union(*splits)) == 900
    assert all(split_of(problem.query) == "test" for problem in make_problems("test", 300))


def test_questions_of_a_split_are_all_different() -> None:
    assert len({problem.query for problem in make_problems("train", 1500)}) == 1500


def test_splits_are_disjoint_at_any_seed() -> None:
    tested = {problem.query for problem in make_problems("test", 300)}
    assert not tested & {problem.query for seed in range(5) for problem in make_problems("train", 500, seed)}


def test_problems_follow_their_seed_alone() -> None:
    random.seed(1)
    before = make_problems("valid", 20)
    random.seed(2)
    assert make_problems("valid", 20) == before != make_problems("valid", 20, seed=1)


def test_more_problems_begin_with_the_fewer() -> None:
    assert make_problems("test", 50)[:20] == make_problems("test", 20)


@pytest.mark.parametrize("telling", ["response", "story", "worked", "retold"])
def test_every_equation_is_right_and_the_last_result_is_the_answer(telling: str) -> None:
    for problem in PROBLEMS:
        found = equations(getattr(problem, telling))
        assert found
        assert all(is_right(*equation) for equation in found), getattr(problem, telling)
        assert found[-1][-1] == problem.answer


def test_all_tellings_hold_the_same_equations() -> None:
    for problem in PROBLEMS:
        tellings = (problem.response, problem.story, problem.worked, problem.retold)
        assert len({tuple(equations(telling)) for telling in tellings}) == 1


def test_no_number_is_below_0_or_above_99() -> None:
    for problem in PROBLEMS:
        texts = (problem.query, problem.response, problem.story, problem.worked, problem.retold)
        assert all(0 <= int(number) <= LARGEST for text in texts for number in re.findall(r"\d+", text))
        assert not any(re.search(r"-\d", text) for text in texts)


def test_the_stated_answer_is_the_answer() -> None:
    assert all(parse_answer(problem.response) == str(problem.answer) for problem in PROBLEMS)


def test_no_template_is_left_unfilled() -> None:
    texts = [text for p in PROBLEMS for text in (p.query, p.response, p.story, p.worked, p.retold)]
    assert not [text for text in texts if re.search(r"[{}]|  |^\s|\s$", text)]


def test_stories_have_one_to_three_equations() -> None:
    assert {len(equations(problem.response)) for problem in PROBLEMS} == {1, 2, 3}


def test_answers_are_spread_out() -> None:
    answers = [problem.answer for problem in PROBLEMS]
    assert max(answers.count(answer) for answer in set(answers)) < 0.05 * len(answers)


def test_facts_are_right_and_small() -> None:
    rng = random.Random(0)
    for _ in range(3000):
        [equation] = equations(make_fact(rng))
        assert is_right(*equation)
        assert all(0 <= number <= LARGEST for number in (equation[0], *equation[2:]))


def test_pretraining_follows_its_seed_alone() -> None:
    assert list(islice(pretraining_documents(seed=0), 50)) == DOCUMENTS[:50]
    assert list(islice(pretraining_documents(seed=1), 50)) != DOCUMENTS[:50]


def test_pretraining_holds_no_question_to_be_judged_by() -> None:
    judged = {problem.query for split in ("valid", "test") for problem in make_problems(split, 300)}
    text = "\n".join(DOCUMENTS)
    assert not [query for query in judged if query in text]


def test_pretraining_tells_only_of_training_questions() -> None:
    worked = [document.split(" Working:")[0] for document in DOCUMENTS if " Working:" in document]
    assert len(worked) > 1000
    assert {split_of(question) for question in worked} == {"train"}


def test_pretraining_never_shows_the_form_of_an_answer() -> None:
    assert not [document for document in DOCUMENTS if "The answer is:" in document]
    assert not [document for document in DOCUMENTS if parse_answer(document) in {str(n) for n in range(LARGEST + 1)}]


def test_pretraining_equations_are_right() -> None:
    assert all(is_right(*equation) for document in DOCUMENTS for equation in equations(document))


def test_passages_hold_no_equation() -> None:
    rng = random.Random(0)
    assert not any(equations(make_passage(rng)) for _ in range(500))


def test_general_text_is_the_same_for_every_job_and_not_that_of_pretraining() -> None:
    passages = general_passages(100)
    assert passages == general_passages(100)
    assert general_passages(40) == passages[:40]
    assert len(set(passages) & set(DOCUMENTS)) < 5


def test_a_problem_is_told_of_one_person_and_another() -> None:
    problem = make_problem(random.Random(0))
    assert problem.query.endswith("?")
    assert problem.response.endswith(f"The answer is: {problem.answer}")
