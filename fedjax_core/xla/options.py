"""Compiler options of XLA for lanes on a CPU, where the defaults are not the fastest (jax 0.10.2, 2-core
x86).

    one thread an operation    where each core is a device with lanes of its own: threads for single
                               operations only stand in each other's way, and at times one device's program
                               was held up until the other's was done (a round of 70 ms took 140)
    no library's convolution   XLA gives 3x3 convolutions to a library that needs 2.4 ms where XLA's own needs 1.1

Options that this version of XLA does not know are left out.

>>> sorted(compiler_options(cores=False))
['xla_cpu_experimental_ynn_fusion_type']
"""

import logging
from functools import cache

import jax

log = logging.getLogger("fedjax_core")

_OWN_CONVOLUTIONS = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"}
_ONE_THREAD = {"xla_cpu_multi_thread_eigen": "False"}


def compiler_options(*, cores: bool) -> dict[str, str]:
    """The `compiler_options` of a program of lanes; `cores`: its devices are the cores of one processor."""
    if jax.default_backend() != "cpu":
        return {}
    wanted = {**_OWN_CONVOLUTIONS, **(_ONE_THREAD if cores else {})}
    return {name: value for name, value in wanted.items() if _known(name, value)}


@cache
def _known(name: str, value: str) -> bool:
    """Whether this version of XLA accepts the option."""
    try:
        jax.jit(lambda: 0, compiler_options={name: value}).lower().compile()
    except jax.errors.JaxRuntimeError as error:
        log.info("compiling without %s: %s", name, error)
        return False
    return True
