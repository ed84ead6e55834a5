"""An excerpt of Shakespeare's plays by speaking role: a megabyte, for language models on a laptop.

Speeches are separated by a blank line, and begin with who speaks. A role's first speeches train, its last
ones test. It is not LEAF's Shakespeare, which has all plays, so accuracies on that are no guide. Karpathy,
"char-rnn", 2015; the text is public domain."""

from collections import defaultdict

from fedjax_core.data.clients import Clients
from fedjax_core.data.datasets.base import Remote, find
from fedjax_core.data.datasets.text import sequences
from fedjax_core.data.datasets.tff import Federated

INPUT = Remote(
    "input.txt",
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
    "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    1115394,
)


def tiny_shakespeare(length: int = 80, *, least: int = 500, train: float = 0.8) -> Federated:
    """Roles with `least` characters or more: x and y int32 [n, length], y one character ahead
    (`datasets.text`).

    `train` is the share of a role's speeches that it trains on, at least one of them; a role with one speech
    has none to test."""
    content = find("tiny_shakespeare", [INPUT])[INPUT.name].read_text()
    roles: dict[str, list[str]] = defaultdict(list)
    for speech in content.strip().split("\n\n"):
        role, _, text = speech.partition("\n")
        roles[role.strip().removesuffix(":")].append(text)
    chosen = {role: text for role, text in sorted(roles.items()) if sum(map(len, text)) >= least}
    if not chosen:
        raise ValueError(
            f"no role has {least:,} characters: ask for fewer, the largest has {max(sum(map(len, s)) for s in roles.values()):,}"
        )
    cuts = {role: max(1, int(train * len(text))) for role, text in chosen.items()}
    parts = [
        [text[: cuts[role]] for role, text in chosen.items()],
        [text[cuts[role] :] for role, text in chosen.items()],
    ]
    made = [[dict(zip("xy", sequences(text, length), strict=True)) for text in part] for part in parts]
    return Federated(*(Clients.from_list(part, ids=list(chosen)) for part in made))
