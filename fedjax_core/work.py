"""The amount of work of a client in one exchange, and whether its data is shuffled.

    TRAIN                the run's epochs or steps, shuffled               Work(epochs=2)    two passes, whatever the run's
    ONCE                 every example once, in the order stored           Work(steps=1)     one batch
                                                                           Work(steps=0)     begin, then finish: no data

Batches themselves are made by `fedjax_core.data.batches`.

>>> TRAIN, ONCE == Work(epochs=1, shuffled=False)
(Work(), True)
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Work:
    """The `epochs` or `steps` of a client in one exchange; by default the run's."""

    epochs: int | None = None
    steps: int | None = None
    shuffled: bool = True

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("steps", 0)):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
                raise ValueError(
                    f"{name} of Work must be a whole number of at least {least}, or None for the run's, got {value!r}"
                )
        if self.epochs is not None and self.steps is not None:
            raise ValueError(
                f"Work takes epochs or steps, not both (got epochs={self.epochs}, steps={self.steps})"
            )

    @property
    def idle(self) -> bool:
        """Whether clients begin and finish without looking at their data."""
        return self.steps == 0

    @property
    def trains(self) -> bool:
        """Whether it may end early and still be training: not if the result needs all examples, nor if there
        is nothing to do."""
        return self.shuffled and not self.idle

    def __repr__(self) -> str:
        given = {"epochs": self.epochs, "steps": self.steps, "shuffled": None if self.shuffled else False}
        return f"Work({', '.join(f'{name}={value}' for name, value in given.items() if value is not None)})"

    def __lt__(self, other: "Work") -> bool:  # JAX sorts the keys of a dictionary
        return repr(self) < repr(other)


TRAIN, ONCE = Work(), Work(epochs=1, shuffled=False)
