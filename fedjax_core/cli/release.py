"""`fedjax-core release`: may the model of this run be released?"""

from pathlib import Path

import jax
from tyro.conf import Positional

from fedjax_core.release import USUAL, Candidate, Limits, examine, write
from fedjax_core.run.checkpoint import Checkpoints
from fedjax_core.run.encryption import load_key
from fedjax_core.sites.study import named


def release(
    run_dir: Positional[Path],
    candidate: str,
    shadows: int = 16,
    seed: int = 0,
    encrypt: str | None = None,
    limits: Limits = USUAL,
) -> None:
    """Attacks the newest model of a run, and says whether it may be released; writes RUN_DIR/release.

    Args:
        run_dir: What `fc.fit` wrote.
        candidate: module:function, installed here, that returns an `fc.release.Candidate` of the run.
        shadows: How many shadow runs there are, each as long as the run.
        seed: The seed of the halves that these are trained on.
        encrypt: The key of the checkpoints, as given to `fc.fit`.
        limits: The limits above which the model is blocked.
    """
    made = named(candidate)()
    if not isinstance(made, Candidate):
        raise ValueError(
            f"{candidate} returned a {type(made).__name__}: it should be an fc.release.Candidate"
        )
    with Checkpoints(run_dir, key=None if encrypt is None else load_key(encrypt, run_dir)) as checkpoints:
        saved = checkpoints.newest()
    if saved is None:
        raise ValueError(f"{run_dir} has no checkpoint: train with fc.fit(run_dir=...) first")
    state = saved.place(made.simulator.init(jax.random.key(0)))
    verdict = examine(made, state.params, shadows=shadows, seed=seed, limits=limits)
    write(verdict, limits, run_dir / "release")
    for one in verdict.findings:
        print(
            f"{'BLOCKS ' if one.blocks else 'passes '} {one.check}, {one.group}: {one.value:.3f} (limit {one.limit:g}); {one.said}"
        )
    print(
        f"{run_dir / 'release'} has release.json and probabilities.csv, which tell who was trained on: they are for their owner alone"
    )
    if verdict.blocked:
        raise ValueError(
            f"the model of round {saved.round} is not to be released: {sum(one.blocks for one in verdict.findings)} findings"
        )
    print(
        f"the model of round {saved.round} is within all limits; that is no promise: only differential privacy gives one"
    )
