"""How a command's settings are typed."""

import pytest

from peftsweep.commands.words import build_parser


@pytest.mark.parametrize("typed", [["--port", "7"], ["--port=7"], ["port=7"]], ids=" ".join)
def test_an_option_is_typed_as_every_setting_or_with_dashes(typed: list[str]) -> None:
    parser = build_parser("ui", "Pages.")
    parser.add_argument("--port", type=int)
    assert parser.parse_args(typed).port == 7


def test_a_word_that_names_no_option_stays_a_word() -> None:
    parser = build_parser("export", "Weights.")
    parser.add_argument("words", nargs="*")
    assert parser.parse_args(["out=folder"]).words == ["out=folder"]
