"""The demo from end to end, in its tiny form."""

from __future__ import annotations

from pathlib import Path

from ironrank.files import read_json
from ironrank.recipes.demo import run_demo


def test_demo_trains_judges_and_reports(tmp_path: Path) -> None:
    result = run_demo(tmp_path, tiny=True)
    rows = {row["name"]: row for row in result["rows"]}
    assert list(rows) == ["dense", "SVD, fine-tuned", "CondLR, tau 0.1"]
    dense, svd, condlr = rows.values()
    assert (
        condlr["params_deployed"]
        == svd["params_deployed"]
        < dense["params_deployed"]
        == condlr["params_dense"]
    )
    assert condlr["macs"] == svd["macs"] < dense["macs"]
    assert all(
        layer["cond"] <= 1.1 + 1e-5 and layer["orthonormality_error"] <= 1e-5 for layer in condlr["layers"]
    )
    for row in rows.values():
        assert row["robust"][-1]["attack"] == "PGD-4 Linf ce+margin" and row["robust"][-1]["eps"] == 0.1
        assert row["robust"][-1]["accuracy"] <= row["clean"]
        assert (
            row["curve"][0]["accuracy"] == row["clean"]
            and row["curve"][-1]["accuracy"] <= row["curve"][0]["accuracy"]
        )
        assert row["form_gap"] < 1e-4
    page = Path(result["report"]).read_text(encoding="utf-8")
    assert all(name in page for name in rows) and page.count("<svg") >= 3
    assert (
        page.count('<img src="data:image/png') == 3 * 3 * 6 and "first weights, drawn from the seed" in page
    )
    assert read_json(tmp_path / "condlr" / "evaluation.json")["name"] == "CondLR, tau 0.1"
