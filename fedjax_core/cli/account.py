"""`fedjax-core account ...`: a site's privacy account, the epsilon that its updates have spent."""

from pathlib import Path

from tyro.conf import Positional
from tyro.extras import SubcommandApp

from fedjax_core.sites.policy import Policy
from fedjax_core.sites.policy.privacy_ledger import Ledger, epsilon
from fedjax_core.sites.site_file import SiteFile

app = SubcommandApp()


@app.command
def begin(path: Positional[Path]) -> None:
    """Begins the privacy account of a site that has sent no update yet; refused where there is one.

    Never begin one to replace one that was lost: what that one had counted is spent all the same.

    Args:
        path: The site's file.
    """
    site_file = SiteFile.read(path)
    try:
        file = Ledger.begin(_where(site_file))
    except FileExistsError:
        raise ValueError(
            f"{_where(site_file) / 'told.json'} is there already: `fedjax-core account show {path}` says what it has"
        ) from None
    print(f"{file}: nothing told so far. Back it up with the site's folder.")


@app.command
def show(path: Positional[Path]) -> None:
    """Shows the epsilon that a site's updates have spent so far, in all studies, and what its policy still
    allows.

    Args:
        path: The site's file.
    """
    site_file = SiteFile.read(path)
    ledger = Ledger(site_file.folder, site_file.account)
    ledger.check()
    leaving = None if site_file.policy is None else Policy.read(site_file.policy).leaving
    if leaving is None or leaving.delta is None:
        print(
            f"mu^2 = {ledger.privacy_loss:.6g}; the site's policy has no leaving.delta at which an epsilon could be said"
        )
        return
    limit = (
        "no limit is set (leaving.epsilon)"
        if leaving.epsilon is None
        else f"up to {leaving.epsilon:g} may be (leaving.epsilon)"
    )
    print(
        f"an epsilon of {epsilon(ledger.privacy_loss, leaving.delta):.4g} at delta {leaving.delta:g} told so far; {limit}"
    )


def _where(site_file: SiteFile) -> Path:
    """The folder of the account."""
    if (where := site_file.account or site_file.folder) is None:
        raise ValueError(
            f"{site_file.file} names no folder, in which an account could be kept: set folder = ..., or account = ..."
        )
    return where
