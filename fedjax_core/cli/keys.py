"""`fedjax-core keys ...`: a site's key, and its public half."""

from pathlib import Path

from tyro.conf import Positional
from tyro.extras import SubcommandApp

from fedjax_core.sites.wire import identity

app = SubcommandApp()


@app.command
def make(name: Positional[str], folder: Path = Path(".")) -> None:
    """Makes a site's key: FOLDER/NAME.key, which never leaves the site, and FOLDER/NAME.pub, whose line goes
    into the roster.

    Args:
        name: What the site is called by everybody.
        folder: Where the two files go.
    """
    key = identity.SiteKey.make(name)
    path = key.save(folder)
    print(f"{path} is private: back it up, and let it never leave this site.")
    print(
        f"{path.with_suffix('.pub')} is public: send it to the coordinator, and compare the fingerprint by telephone."
    )
    _show(name, key.public)


@app.command
def show(path: Positional[Path]) -> None:
    """Shows the public half of a .key or .pub file.

    Args:
        path: The file.
    """
    if path.suffix == ".key":
        key = identity.SiteKey.load(path)
        _show(key.name, key.public)
    else:
        _show(*identity.read_public(path))


def _show(name: str, key: identity.PublicKey) -> None:
    print(f'{name} = "{key.text}"')
    print(f"fingerprint {key.fingerprint}")
