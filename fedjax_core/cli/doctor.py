"""`fedjax-core doctor`: is this site ready to join?"""

from pathlib import Path

from tyro.conf import Positional

from fedjax_core.sites.doctor import examination


def doctor(
    path: Positional[Path],
    address: str | None = None,
    now: float | None = None,
    offset_seconds: float = 60.0,
    free_gb: float = 2.0,
    memory_gb: float = 1.0,
) -> None:
    """Examines a site before it joins, and says what to do; uses expected.toml and ray/ beside its file if
    they exist.

    Args:
        path: The site's file.
        address: host:port of the coordinator's Ray.
        now: The right time, in seconds since 1970, as `date +%s` says at the coordinator.
        offset_seconds: The largest error of the site's clock.
        free_gb: The disk space that must be free.
        memory_gb: The memory that must be free.
    """
    settings = examination.Settings(
        address=address, now=now, offset_seconds=offset_seconds, free_gb=free_gb, memory_gb=memory_gb
    )
    checks = examination.examine(path, examination.beside(path, settings))
    for one in checks:
        print(f"{'-' if one.fine is None else 'ok' if one.fine else 'NO':3}{one.what:12}{one.message}")
    if wrong := [one.what for one in checks if one.fine is False]:
        raise RuntimeError(f"{path}: not ready to join, for {', '.join(wrong)} (see NO above)")
    print(f"{path}: ready to join.")
