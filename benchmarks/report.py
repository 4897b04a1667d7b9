"""The table."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

__all__ = ["show"]


def show(report: dict[str, Any]) -> None:
    console = Console()
    if not console.is_terminal:  # a pipe has no width: do not cut what a person will read
        console = Console(width=160)
    facts = report["machine"]
    caption = (
        f"{facts['cores']} cores, {facts['processor']}, {facts['python']}, {facts['system']}, "
        f"load {facts['load']} when it began and {facts['load_after']} at the end; "
        f"{report['seconds']:.0f} s"
        f"{', --quick' if report['quick'] else ''}"
        f"{', --scale ' + format(report['scale'], 'g') if report['scale'] != 1 else ''}\n"
        "median, p99: calls timed one by one in short blocks, the clock's own cost "
        f"{_clock(report)} taken off, garbage collector between blocks.\n"
        "loop: calls without a pause, collector on. rate: from the first call until all of it "
        "is where the row says.\n"
        "CPU µs: for each metric, of all processes and threads behind the row (an MLflow server "
        "left out); what else runs on the machine adds nothing to it.\n"
        "÷ zmqtrack's: how many times the time of zmqtrack's row of the same syntax or "
        "tracker (for calls: of the medians)."
    )
    if max(facts["load"], facts["load_after"]) > 1.5 * facts["cores"]:
        caption += (
            "\n[bold]The machine was busy with other work: all times but the CPU's are too long, "
            "and unevenly so.[/bold]"
        )
    table = Table(title="zmqtrack, beside other loggers", caption=caption, caption_justify="left")
    table.add_column("", no_wrap=True)
    for name in ("median µs", "p99 µs", "loop µs", "CPU µs", "metrics/s", "÷ zmqtrack's"):
        table.add_column(name, justify="right")
    table.add_column("", overflow="fold")
    _section(table, "a logging call", [_call(row) for row in report["calls"]])
    _section(table, "rate, end to end", [_rate(row) for row in report["rates"]])
    _section(table, "footprint", [_fact(row) for row in report["footprint"]])
    console.print(table)


def _section(table: Table, title: str, rows: list[tuple[str, ...]]) -> None:
    if rows:
        table.add_row(f"[bold]{title}[/bold]")
        for row in rows:
            table.add_row(*(escape(cell) for cell in row))
        table.add_section()


def _call(row: dict[str, Any]) -> tuple[str, ...]:
    if excuse := _excuse(row):
        return (row["title"], "", "", "", "", "", "", excuse)
    each = row["metrics_per_call"]
    return (
        row["title"],
        _number(row["median_us"]),
        _number(row["p99_us"]),
        _number(row["loop_us"]),
        _number(row["cpu_us_per_metric"]),
        _number(1e6 * each / row["loop_us"]) if row["loop_us"] else "",
        _times(row),
        f"{row['calls']:,} calls, loop of {row['loop_calls']:,}",
    )


def _rate(row: dict[str, Any]) -> tuple[str, ...]:
    if excuse := _excuse(row):
        return (row["title"], "", "", "", "", "", "", excuse)
    remark = f"{row['metrics']:,} metrics in {row['seconds']:.2f} s"
    if counters := row.get("counters"):
        remark += f"; counted: {counters}"
    cpu, rate = _number(row["cpu_us_per_metric"]), _number(row["metrics_per_second"])
    return (row["title"], "", "", "", cpu, rate, _times(row), remark)


def _fact(row: dict[str, Any]) -> tuple[str, ...]:
    return (row["title"], "", "", "", "", "", "", _excuse(row) or row["text"])


def _excuse(row: dict[str, Any]) -> str:
    return str(row.get("missing") or row.get("failed") or "")


def _times(row: dict[str, Any]) -> str:
    return f"{_number(row['ratio'])}×" if row.get("ratio") else ""


def _number(number: float) -> str:
    """Three digits or so."""
    if number >= 100:
        return f"{number:,.0f}"
    return f"{number:.1f}" if number >= 10 else f"{number:.2f}"


def _clock(report: dict[str, Any]) -> str:
    costs = [row["clock_ns"] for row in report["calls"] if "clock_ns" in row]
    return f"({min(costs):.0f} to {max(costs):.0f} ns)" if costs else ""
