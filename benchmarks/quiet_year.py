"""How often the anomaly checks alarm in quiet traffic, and which faults they find: `python -m benchmarks.quiet_year`.

Lives here: simulated traffic in windows of four hours, and counting alarms; `--write` puts what was counted into
`docs/how-to/anomalies.md` and draws its picture. Add here: a fault people should know the power for.
Not here: the checks (`lifecycle_assets/monitoring/anomalies.py`).

Quiet traffic has day, night and weekend, grows by 1 % a week, and is noisier than chance: the rate of each window
varies by 12 %, its error rate and latency by a tenth, as weather and news make them.
"""

import argparse
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lifecycle_assets.monitoring.anomalies import (
    FEWEST,
    FEWEST_P95,
    HOURS,
    WEEK,
    YEAR,
    judge_count,
    judge_level,
    judge_share,
    level_of,
)

WEEKS, ALARMS = 4, 2.0
MEANS = (40.0, 400.0)
"""Traces of a window on average."""

DOCS = Path(__file__).resolve().parents[1] / "docs"
BEGIN, END = "<!-- counted by python -m benchmarks.quiet_year --write -->", "<!-- end -->"
CHECKS = ("volume_anomaly", "error_rate_anomaly", "latency_anomaly", "score_anomaly")


@dataclass
class Traffic:
    """Numbers by window; two scorers: `kind` gives 1 to 5, `grounded` is pass or fail."""

    traces: dict[int, int] = field(default_factory=dict)
    errors: dict[int, int] = field(default_factory=dict)
    p50: dict[int, float] = field(default_factory=dict)
    p95: dict[int, float] = field(default_factory=dict)
    kind: dict[int, float] = field(default_factory=dict)
    failed: dict[int, int] = field(default_factory=dict)


def window(
    traffic: Traffic, i: int, random: np.random.Generator, mean: float, fault: str = "", size: float = 1
) -> None:
    """Add the window `i` of traffic with `mean` traces a window on average; a `fault` multiplies by `size`."""
    hour, day = i * HOURS % 24, i * HOURS // 24 % 7
    shape = (1 + 0.8 * math.sin((hour - 8) / 24 * 2 * math.pi)) * (0.6 if day >= 5 else 1.0)
    rate = mean * shape * 1.01 ** (i / WEEK) * random.gamma(1 / 0.12**2, 0.12**2)
    n = int(random.poisson(rate * (size if fault == "volume" else 1)))
    error_rate = 0.03 * random.gamma(100, 1 / 100) * (size if fault == "error_rate" else 1)
    middle = 1.2 * math.exp(random.normal(0, 0.05)) * (size if fault == "latency" else 1)
    seconds = random.lognormal(math.log(middle), 0.7, n)
    fails = 0.08 * random.gamma(100, 1 / 100) * (size if fault == "failures" else 1)
    traffic.traces[i], traffic.errors[i] = n, int(random.binomial(n, min(error_rate, 1)))
    traffic.failed[i] = int(random.binomial(n, min(fails, 1)))
    if n:
        traffic.p50[i], traffic.p95[i] = (float(np.log(one)) for one in np.percentile(seconds, [50, 95]))
        shift = random.normal(0, 0.05) - (size if fault == "score" else 0)
        traffic.kind[i] = float(np.clip(np.round(random.normal(4.2 + shift, 0.9, n)), 1, 5).mean())


def alarms(traffic: Traffic, i: int, per_year: float = ALARMS, weeks: int = WEEKS) -> dict[str, bool]:
    """Which checks alarm on the window `i`."""
    one, two, n = level_of(per_year), level_of(per_year, 2), traffic.traces
    slow = [
        judge_level(numbers, n, i, weeks, two, sign=1, fewest=fewest)
        for numbers, fewest in ((traffic.p50, FEWEST), (traffic.p95, FEWEST_P95))
    ]
    poor = [judge_level(traffic.kind, n, i, weeks, two, sign=-1), judge_share(traffic.failed, n, i, weeks, two)]
    return {
        "volume_anomaly": judge_count(n, i, weeks, one).is_anomaly,
        "error_rate_anomaly": judge_share(traffic.errors, n, i, weeks, one).is_anomaly,
        "latency_anomaly": any(finding.is_anomaly for finding in slow),
        "score_anomaly": any(finding.is_anomaly for finding in poor),
    }


def quiet(seed: int, mean: float, windows: int = YEAR, per_year: float = ALARMS) -> dict[str, int]:
    """Alarms in so many quiet windows."""
    random, traffic, found = np.random.default_rng(seed), Traffic(), dict.fromkeys(CHECKS, 0)
    start = (WEEKS + 1) * WEEK + 1
    for i in range(start + windows):
        window(traffic, i, random, mean)
        if i >= start:
            for name, alarmed in alarms(traffic, i, per_year).items():
                found[name] += alarmed
    return found


FAULTS: dict[str, tuple[str, tuple[float, ...], str]] = {
    "volume": ("volume_anomaly", (0.8, 0.6, 0.5, 0.3, 0.1, 0.0), "traces, of what is usual"),
    "error_rate": ("error_rate_anomaly", (1.5, 2, 3, 5), "error rate, times 3 %"),
    "latency": ("latency_anomaly", (1.1, 1.25, 1.5, 2), "latency, times what is usual"),
    "failures": ("score_anomaly", (1.5, 2, 3, 5), "failed verdicts, times 8 %"),
    "score": ("score_anomaly", (0.1, 0.2, 0.3, 0.5), "mean of a score 1 to 5, lower by"),
}


def power(seed: int, mean: float, fault: str, size: float, trials: int) -> float:
    """Share of faulty windows, at any hour of the week, that the check finds."""
    random, start, found = np.random.default_rng(seed), (WEEKS + 1) * WEEK + 1, 0
    traffic = Traffic()
    for i in range(start):
        window(traffic, i, random, mean)
    for trial in range(trials):
        i = start + trial
        window(traffic, i, random, mean, fault, size)
        found += alarms(traffic, i)[FAULTS[fault][0]]
        window(traffic, i, random, mean)  # The weeks to come are compared with a quiet one.
    return found / trials


def rows(years: int, trials: int) -> Iterator[dict[str, object]]:
    """Everything that is stated, with a line of progress each."""
    for mean in MEANS:
        counted = [quiet(seed, mean) for seed in range(years)]
        for name in CHECKS:
            total = sum(one[name] for one in counted)
            print(f"{mean:g} traces a window, {name}: {total} alarms in {years} quiet years", flush=True)
            yield {"kind": "quiet", "traces": mean, "check": name, "years": years, "alarms": total}
        for fault, (check, sizes, _) in FAULTS.items():
            for size in sizes:
                share = power(7, mean, fault, size, trials)
                print(f"{mean:g} traces a window, {fault} {size:g}: {share:.0%} found by {check}", flush=True)
                yield {"kind": "fault", "traces": mean, "check": check, "fault": fault, "size": size, "found": share}


def table(found: Sequence[Mapping[str, object]]) -> str:
    """Alarms in quiet years as a table of Markdown."""
    years, means = found[0]["years"], sorted({float(str(row["traces"])) for row in found})
    lines = [
        f"| alarms a year, counted in {years} simulated years | " + " | ".join(f"{m:g} traces" for m in means) + " |",
        "| --- |" + " --- |" * len(means),
    ]
    for name in CHECKS:
        counts = [row["alarms"] for m in means for row in found if row["check"] == name and row["traces"] == m]
        lines.append(f"| `{name}` | " + " | ".join(f"{int(str(one)) / int(str(years)):.1f}" for one in counts) + " |")
    return "\n".join(lines)


def draw(found: Sequence[Mapping[str, object]], file: Path) -> None:
    """Which share of faulty windows is found, by the size of the fault; one picture a kind of fault."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 2.6), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    for number, (fault, (check, sizes, label)) in enumerate(FAULTS.items()):
        axes = figure.add_subplot(1, len(FAULTS), number + 1)
        for mean, colour in zip(MEANS, ("#ff9800", "#3d5afe"), strict=True):
            shares = [float(str(r["found"])) for r in found if r.get("fault") == fault and r["traces"] == mean]
            axes.plot([f"{size:g}" for size in sizes], shares, marker="o", color=colour, label=f"{mean:g} traces")
        axes.set_ylim(-0.03, 1.03)
        axes.set_title(check, fontsize=9)
        axes.set_xlabel(label, fontsize=8)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.3)
        if not number:
            axes.set_ylabel("found", fontsize=8)
            axes.legend(fontsize=7)
    figure.savefig(file, format="png", dpi=110)


def main() -> None:
    """Simulate, print, and write what the page rests on."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--years", type=int, default=10)
    parser.add_argument("--trials", type=int, default=WEEK * 2)
    parser.add_argument("--write", action="store_true")
    said = parser.parse_args()
    found = list(rows(said.years, said.trials))
    if said.write:
        page = DOCS / "how-to" / "anomalies.md"
        before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
        after = rest.partition(END)[2]
        counted = table([row for row in found if row["kind"] == "quiet"])
        page.write_text(f"{before}{BEGIN}\n\n{counted}\n\n{END}{after}", encoding="utf-8")
        draw(found, DOCS / "pictures" / "anomalies.png")


if __name__ == "__main__":
    main()
