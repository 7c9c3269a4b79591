"""What is printed is what was found: names are the lake's, whatever signs are in them."""

import pytest
from rich.table import Table

from mtrec_ray.console import print_result


@pytest.mark.parametrize("name", ["[REC]", "[/b]", "[bold]Dune", ":cat:", "list[dict[str, Any]]"])
def test_a_name_is_printed_sign_by_sign(capsys, name):
    table = Table(title=f"Lake {name}", caption=name)
    table.add_column(name, min_width=40)
    table.add_row(name)
    print_result({}, [table], as_json=False)
    assert capsys.readouterr().out.count(name) == 4  # title, head, cell, caption
