"""The result of `bench_train_step` as a Markdown table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_MIB = 2**20


def as_markdown(result: Mapping[str, Any]) -> str:
    """Render a result of `bench_train_step`.

    Args:
        result: Its return value, or the same read back from JSON.

    Returns:
        Two lines on machine and settings, the table of times, the table of memory.
    """
    rows = result["rows"]
    parts = [_head(result), _times(rows), *_failures(rows), _memory(rows)]
    return "\n\n".join(parts) + "\n"


def _head(result: Mapping[str, Any]) -> str:
    hw, told = result["hardware"], result["settings"]
    flags = ", ".join(hw["flags"]) or "no vector extensions named"
    allocator = "set" if told["allocator_settings"] else "default"
    return (
        f"{hw['cpu']} ({flags}), {hw['threads']} of {hw['cores']} cores, torch {hw['torch']}, "
        f"Python {hw['python']}, load before {hw['load_before']}, allocator settings: {allocator}.\n"
        f"Batch {told['batch']}, {told['rounds']} rounds, tau {told['tau']}, momentum {told['momentum']}. "
        "Medians in milliseconds; ratios are medians of the rounds [quartiles] (min/min)."
    )


def _times(rows: Sequence[Mapping[str, Any]]) -> str:
    extra = sorted({name for row in rows for name in row["extra_over_ours"]})
    header = [
        "net",
        "nominal",
        "dense nchw",
        "dense channels_last",
        "ours",
        "ours / best dense",
        "retraction share",
    ]
    header += [text for name in extra for text in (name, f"{name} / ours")]
    return _table(header, [_times_row(row, extra) for row in rows])


def _times_row(row: Mapping[str, Any], extra: Sequence[str]) -> list[str]:
    ms = [_number(row["ms"][key]["median"]) for key in ("dense nchw", "dense channels_last", "condlr")]
    cells = [
        row["net"],
        f"{row['nominal']} %",
        *ms,
        _ratio(row["ratio"]),
        f"{100 * row['retraction_share']:.1f} %",
    ]
    for name in extra:
        there = name in row["extra_over_ours"]
        cells += (
            [_number(row["ms"][name]["median"]), _ratio(row["extra_over_ours"][name])]
            if there
            else ["-", "-"]
        )
    return cells


def _failures(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    told = [(row, label, count) for row in rows for label, count in row["failures"].items()]
    return [
        f"{row['net']} {row['nominal']} %: {count} steps of {label} broke off." for row, label, count in told
    ]


def _memory(rows: Sequence[Mapping[str, Any]]) -> str:
    header = ["net", "nominal", "variant", "parameters", "weights MiB", "gradients MiB", "optimizer MiB",
              "activations MiB", "total MiB", "activations / dense", "peak resident MiB"]  # fmt: skip
    return _table(header, [cells for row in rows for cells in _memory_rows(row)])


def _memory_rows(row: Mapping[str, Any]) -> list[list[str]]:
    dense = row["memory"][row["best_dense"]]
    shown = [row["best_dense"], "condlr", *row["extra_over_ours"]]
    cells = []
    for label in shown:
        memory = row["memory"][label]
        sizes = [
            f"{memory[kind] / _MIB:.1f}"
            for kind in ("weights", "gradients", "optimizer", "activations", "total")
        ]
        peak = row.get("peak", {}).get(label)
        cells.append([row["net"], f"{row['nominal']} %", label, f"{row['parameters'][label]:,}", *sizes,
                      f"{memory['activations'] / dense['activations']:.2f}",
                      f"{peak / _MIB:.0f}" if peak is not None else "-"])  # fmt: skip
    return cells


def _ratio(ratio: Mapping[str, float]) -> str:
    return f"{ratio['median']:.3f} [{ratio['q1']:.3f}, {ratio['q3']:.3f}] ({ratio['best']:.3f})"


def _number(value: float) -> str:
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    ruler = ["---" if i < 2 else "---:" for i in range(len(header))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, ruler, *rows))
