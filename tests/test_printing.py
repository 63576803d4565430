"""Tables on terminals: no cell is cut, however narrow it is."""

import sys
from collections import Counter

import pytest

from zcpipe.printing import print_grid

ARCH = "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|skip_connect~0|nor_conv_1x1~1|none~2|"
RANKING = (
    ["rank", "index", "arch", "logrank", "expressivity", "progressivity", "trainability", "complexity"],
    [["1", "8480", ARCH, "-0.5620", "57.7925", "-0.0464348", "-0.126966", "9.03584e+07"]],
)
INTERVALS = (
    ["proxy", "kendall", "spearman", "pairs", "n", "failed", "missing", "kendall 95 %", "spearman 95 %"],
    [["progressivity", "0.5289", "0.6911", "0.7638", "64", "0", "0", "0.432 to 0.654", "0.574 to 0.811"]],
)
WIDE = (["name", "a", "b", "c"], [["\u4e2d" * 9, "\u6587" * 9, "\u5b57" * 9, "\u7b26" * 9]])
LONG = (["name", "datasets", "paper"], [["nasbench201", "cifar10, cifar100, imagenet16", "Dong and Yang, ICLR 2020"]])


@pytest.mark.parametrize("columns", [20, 40, 60, 80, 100, 160])
@pytest.mark.parametrize(("header", "rows"), [RANKING, INTERVALS, WIDE, LONG])
def test_no_cell_is_cut(header, rows, columns, monkeypatch, capsys):
    monkeypatch.setattr(type(sys.stdout), "isatty", lambda self: True)
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    print_grid(header, rows)
    printed = capsys.readouterr().out
    assert all(name in printed for name in header)
    wanted = Counter("".join((*header, *rows[0])).replace(" ", ""))  # what is long wraps
    assert not wanted - Counter(printed), printed
    assert all(cell in printed for cell in rows[0] if len(cell) <= 20)
