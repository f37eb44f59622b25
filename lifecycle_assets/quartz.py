"""From a cron line of five fields to the Quartz expression Databricks schedules by.

Lives here: the translation, exact or refused.
Add here: a form of cron a declaration may use.
Not here: which jobs have a schedule (`bundle.py`).
"""

from lifecycle_assets.refused import Refused

DAYS = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")
ALIASES = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}


def quartz(cron: str) -> str:
    """The Quartz expression for a cron line. Raises `Refused` for what Quartz cannot say or cron does not know.

    Quartz counts days of the week from Sunday = 1 and takes a day of the month or of the week, not both.
    """
    fields = ALIASES.get(cron.strip().lower(), cron).split()
    if len(fields) != 5:
        raise Refused(f"'{cron[:60]}' is not a cron line of five fields; write one such as 0 7 * * 1.")
    minute, hour, day, month, weekday = fields
    try:
        days = _weekdays(weekday)
    except ValueError:
        raise Refused(f"'{cron[:60]}': '{weekday[:20]}' is no day of the week; write 0-7 or MON-FRI.") from None
    if days == "*":
        return f"0 {minute} {hour} {day} {month} ?"
    if day != "*":
        raise Refused(
            f"'{cron[:60]}' names days of the month and of the week, which a Databricks schedule cannot; use one."
        )
    return f"0 {minute} {hour} ? {month} {days}"


def _weekdays(field: str) -> str:
    """The days by name, `*` for every day."""
    found: set[int] = set()
    for part in field.split(","):
        span, _, step = part.partition("/")
        first, dash, last = span.partition("-")
        if span in ("*", "?"):
            low, high = 0, 6
        else:
            low = _number(first)
            high = _number(last) if dash else 6 if step else low
        if high < low:
            high += 7
        found |= {number % 7 for number in range(low, high + 1, int(step or 1))}
    return "*" if len(found) == 7 else ",".join(DAYS[number] for number in sorted(found))


def _number(text: str) -> int:
    number = DAYS.index(text.upper()) if text.upper() in DAYS else int(text)
    if not 0 <= number <= 7:
        raise ValueError(text)
    return number
