"""docs/tutorial.ipynb runs from its first cell to its last and prints what stands below its cells, on a CPU."""

import ast
import json
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import torch
from matplotlib.figure import Figure

TUTORIAL = Path(__file__).resolve().parents[2] / "docs/tutorial.ipynb"


def test_every_cell_runs_and_prints_what_stands_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names, threads, shown = {}, torch.get_num_threads(), 0
    torch.set_num_threads(1)
    try:
        for cell in json.loads(TUTORIAL.read_text())["cells"]:
            if cell["cell_type"] == "code":
                tree, printed = ast.parse("".join(cell["source"])), StringIO()
                last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
                with redirect_stdout(printed):
                    exec(compile(tree, TUTORIAL.name, "exec"), names)  # noqa: S102 (our own notebook)
                    value = last and eval(compile(ast.Expression(last.value), TUTORIAL.name, "eval"), names)  # noqa: S307
                shown += isinstance(value, Figure)
                # numbers may differ in their last digits from machine to machine, words may not
                written = "".join(line for output in cell["outputs"] for line in output["text"])
                words = [[word for word in text.split() if word.isalpha()] for text in (written, printed.getvalue())]
                assert words[0] == words[1]
    finally:
        torch.set_num_threads(threads)
    assert shown == 2
    assert [path.name for path in tmp_path.iterdir()] == ["tutorial.pth"]
