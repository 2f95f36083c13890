"""README's speed table: every ratio that a bench recorded, with its spread and its goal."""

from collections.abc import Sequence

from speed_results import hardware_words, read_speed_ratios

from last_vit.results import ResultRecord

_HEADER = ("what", "median", "one run's rounds", "goal", "", "hardware", "commit", "source")


def render_speed_table(records: Sequence[ResultRecord]) -> str:
    """One Markdown table, one row per ratio, in the order of the records' names.

    Raises:
        ValueError: A record without ratios.
    """
    lines = [_HEADER, ["---", "---:", "---:", "---:", "---", "---", "---", "---"]]
    for record in records:
        source = f"[{record.row}](results/{record.name}.json)"
        for each in read_speed_ratios(record):
            verdict = "" if each.goal is None else "met" if each.is_met else "**missed**"
            low, high = each.with_unit(each.low), each.with_unit(each.high)
            spread = "" if each.low == each.high else f"{low} to {high}"
            lines.append(
                [
                    each.words,
                    each.with_unit(each.median),
                    spread,
                    each.goal_words(),
                    verdict,
                    hardware_words(record),
                    record.git_commit,
                    source,
                ]
            )
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"
