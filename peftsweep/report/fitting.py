"""Tables that keep every number whole: where the room is scarce, whole columns give way, and it is told which."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich import box
from rich.cells import cell_len
from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

GAP = 2  # characters between two columns
FOLDED = 20  # characters to which names may be folded, at least; they have a third of a wider line


@dataclass(frozen=True)
class TextColumn:
    """importance: the lowest gives way first. is_text: stands on the left. is_name: so does a name, which stays, and
    which alone may be folded."""

    title: str
    cells: Sequence[str]
    importance: int = 0
    is_text: bool = False
    is_name: bool = False

    @property
    def head(self) -> str:
        """The title, narrow: `accuracy, %` and `test/accuracy` have two lines."""
        return self.title.replace(", ", "\n").replace("/", "/\n")

    def width(self, room: int | None) -> int:
        natural = max(cell_len(line) for text in (self.head, *self.cells) for line in text.split("\n"))
        return min(natural, max(FOLDED, room // 3)) if self.is_name and room else natural


def print_table(console: Console, columns: Iterable[TextColumn], rest_is_in: str, title: str = "") -> None:
    """Print the columns for which a terminal has room, then which were left out, and where they are. A file or a pipe
    has room for all."""
    room = console.width if console.is_terminal else None
    shown, left_out = [*columns], list[TextColumn]()
    while room and _width(shown, room) > room:
        left_out.append(min((c for c in reversed(shown) if not c.is_name), key=lambda column: column.importance))
        shown.remove(left_out[-1])
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, GAP - 1, 0, 0))
    for column in shown:
        justify: JustifyMethod = "left" if column.is_text or column.is_name else "right"
        table.add_column(column.head, justify=justify, width=column.width(room), overflow="fold")
    for cells in zip(*(column.cells for column in shown), strict=True):
        table.add_row(*map(Text, cells))
    if title:
        console.print(Text(title, "italic"), soft_wrap=True)
    (console if room else Console(file=console.file, width=_width(shown, None))).print(table)
    if left_out:
        titles = "; ".join(column.title for column in left_out)
        console.print(Text(f"Too narrow for: {titles}. All is in {rest_is_in}.", "dim"))


def _width(columns: Sequence[TextColumn], room: int | None) -> int:
    return sum(column.width(room) + GAP for column in columns) - GAP
