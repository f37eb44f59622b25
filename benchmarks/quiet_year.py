"""How often the anomaly checks alarm in quiet traffic, and which faults they find: `python -m benchmarks.quiet_year`.

Lives here: simulated traffic in windows of four hours, and counting alarms; `--write` writes
`docs/how-to/anomalies.json` and the picture. Add here: a fault people should know the power for.
Not here: the checks (`lifecycle_assets/monitoring/anomalies.py`).

Quiet traffic has day, night and weekend, grows by 1 % a week, and is noisier than chance: the rate of each window
varies by 12 %, its error rate and latency by a tenth, as weather and news make them.
"""

import argparse
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lifecycle_assets.monitoring.anomalies import HOURS, WEEK, YEAR, judge_count, judge_level, judge_share, level_of

WEEKS, ALARMS = 4, 2.0
PAGE = Path(__file__).resolve().parents[1] / "docs" / "how-to"
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


def window(traffic: Traffic, i: int, random: np.random.Generator, mean: float, fault: str = "", size: float = 1) -> None:
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
    slow = [judge_level(p, n, i, weeks, two, sign=1) for p in (traffic.p50, traffic.p95)]
    poor = [judge_level(traffic.kind, n, i, weeks, two, sign=-1), judge_share(traffic.failed, n, i, weeks, two)]
    return {
        "volume_anomaly": judge_count(n, i, weeks, one).is_anomaly,
        "error_rate_anomaly": judge_share(traffic.errors, n, i, weeks, one).is_anomaly,
        "latency_anomaly": any(finding.is_anomaly for finding in slow),
        "score_anomaly": any(finding.is_anomaly for finding in poor),
    }


def quiet(seed: int, mean: float, windows: int = YEAR) -> dict[str, int]:
    """Alarms in so many quiet windows."""
    random, traffic, found = np.random.default_rng(seed), Traffic(), dict.fromkeys(CHECKS, 0)
    start = (WEEKS + 1) * WEEK + 1
    for i in range(start + windows):
        window(traffic, i, random, mean)
        if i >= start:
            for name, alarmed in alarms(traffic, i).items():
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
    for mean in (40.0, 400.0):
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


def main() -> None:
    """Simulate, print, and write what the page rests on."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--years", type=int, default=10)
    parser.add_argument("--trials", type=int, default=WEEK * 2)
    parser.add_argument("--write", action="store_true")
    said = parser.parse_args()
    found = list(rows(said.years, said.trials))
    if said.write:
        (PAGE / "anomalies.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
