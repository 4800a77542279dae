"""CSV as all commands write it: a text in it is no formula for the spreadsheet that opens it.

Excel, LibreOffice and Google Sheets compute a cell that begins with one of `FORMULA_STARTS`, even between quotes, and a
file's name can come from a stranger. A single quote before it keeps it a text (OWASP, "CSV Injection"). `plain_text`
takes the quote away again, so this package's readers get the same text back.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

FORMULA_STARTS = "=+-@\t\r"
_QUOTED = re.compile(rf"'+[{re.escape(FORMULA_STARTS)}]")
_TO_BE_QUOTED = re.compile(rf"'*[{re.escape(FORMULA_STARTS)}]")


def csv_table(columns: Sequence[str], rows: Iterable[Mapping[str, Any]], line_end: str = "\r\n") -> str:
    """Return a table with a head. Columns that a row lacks are empty; numbers are written as they are."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, lineterminator=line_end)
    writer.writeheader()
    writer.writerows({name: _quoted(value) for name, value in row.items()} for row in rows)
    return text.getvalue()


def plain_text(cell: str) -> str:
    """Return the text of a cell that `csv_table` may have written: without the quote that keeps it a text."""
    return cell[1:] if _QUOTED.match(cell) else cell


def _quoted(value: Any) -> Any:
    # Quotes before such a character get one more, so that a name which begins with '= comes back as it was.
    return f"'{value}" if isinstance(value, str) and _TO_BE_QUOTED.match(value) else value
