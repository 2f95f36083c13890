"""Ratios with spread and goal as benches record them, for the speed table and its plot.

A record of a bench names the table "speed". A ratio called r stands in its metrics as r (the median), r_low, r_high
(smallest and largest within one round) and, where there is a goal, r_goal (at least) or r_limit (at most). Words and
unit of r stand in the record's config under "quantities". Other metrics of such a record are shown nowhere.
"""

from dataclasses import dataclass

from last_vit.results import ResultRecord

SPEED_TABLE = "speed"


@dataclass(frozen=True)
class SpeedRatio:
    """One measured ratio."""

    name: str  # of the metric; letters, digits and "_"
    words: str  # what was compared
    median: float  # over the rounds of one run
    low: float  # smallest of one round
    high: float
    goal: float | None = None  # what was to be reached; None for a ratio that is only reported
    is_limit: bool = False  # whether the goal is an upper bound
    unit: str = "x"  # "x", "%" or any other word behind the number

    @property
    def is_met(self) -> bool:
        """Whether the median reaches the goal; also true without one."""
        return self.goal is None or (self.median <= self.goal if self.is_limit else self.median >= self.goal)

    def with_unit(self, value: float) -> str:
        """A value of this ratio in words: "1.34x", "0.70%", "1,250 images/s"."""
        digits = ",.0f" if self.median >= 100 else ".1f" if self.median >= 10 else ".2f"
        return f"{value:{digits}}{self._suffix()}"

    def goal_words(self) -> str:
        """The goal in words: "at least 1.3x"; empty without one."""
        return "" if self.goal is None else f"at {'most' if self.is_limit else 'least'} {self.goal:g}{self._suffix()}"

    def _suffix(self) -> str:
        return self.unit if self.unit in ("x", "%") else f" {self.unit}"


def read_speed_ratios(record: ResultRecord) -> list[SpeedRatio]:
    """The ratios of a bench's record, in the order in which they were measured.

    ValueError: A record without any.
    """
    metrics, ratios = record.metrics, []
    for name, about in record.config.get("quantities", {}).items():
        limit = metrics.get(f"{name}_limit")
        spread = (metrics[name], metrics[f"{name}_low"], metrics[f"{name}_high"])
        goal = metrics.get(f"{name}_goal", limit)
        ratios.append(SpeedRatio(name, about["words"], *spread, goal, limit is not None, about["unit"]))
    if not ratios:
        raise ValueError(
            f"results/{record.name}.json holds no ratio with its spread; run its bench again with --record"
        )
    return ratios


def hardware_words(record: ResultRecord) -> str:
    """Device of a bench's record, a CPU by its name: "NVIDIA H200", "Intel(R) Xeon(R) Processor, 2 threads"."""
    processor = record.config.get("processor")
    on_cpu = record.device.split(",")[0] == "cpu"
    return record.device.replace("cpu", processor, 1) if processor and on_cpu else record.device
