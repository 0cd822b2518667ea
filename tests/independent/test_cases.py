"""The generator obeys the schema, and its cases have power: many altered outputs, some of them transient."""

from __future__ import annotations

import json

import numpy as np

from . import cases, model


def test_datapaths_are_distinct_and_legal() -> None:
    paths = [cases.datapath(number) for number in range(2500)]
    assert len({json.dumps(path, sort_keys=True) for path in paths}) >= 2000
    words, roundings, groupings, depths = set(), set(), set(), set()
    for path in paths:
        depths.add(len(path["levels"]))
        assert path["levels"][-1]["terms"] == "all"
        for level in path["levels"]:
            (grouping,) = {"terms", "parts", "lanes"} & set(level)
            groupings.add((grouping, level[grouping] == "all"))
            exact = level["register"] == "exact"
            assert exact == ("overflow" not in level)
            if not exact:
                bits, signed = model.parse_format(level["register"])
                assert 2 <= bits <= 62
                assert signed or level["overflow"] != "saturate_symmetric"
                words.add((level["overflow"], signed))
            if "item" in level:
                assert level["item"]["drop_bits"] >= 1
                roundings.add(level["item"]["rounding"])
    assert depths == {1, 2, 3, 4}
    assert roundings == set(model.DETERMINISTIC)
    assert len(groupings) == 4
    assert len(words) == 5


def test_the_first_cases_alter_outputs_and_are_reproducible() -> None:
    altered = transient = run = 0
    for case in cases.cases(400):
        if case.a.shape[1] > 256:
            continue
        again = cases.case(case.number)
        assert again.datapath == case.datapath
        assert np.array_equal(again.a, case.a)
        start = None if case.c is None else case.c.tolist()
        _, events = model.gemm(case.a.tolist(), case.b.tolist(), case.datapath, start)
        run += 1
        altered += events["altered"] > 0
        transient += events["transient"] > 0
    print(f"{run} cases, {altered} with altered outputs, {transient} with transients")
    assert altered >= run // 4
    assert transient >= run // 20
