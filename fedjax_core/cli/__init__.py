"""The command line: `fedjax-core consortium ...`, `data ...`, `doctor`, `node`, `keys ...`, `certificates
...`, `account ...`, `audit ...`, `report`, `watch` and `release`.

    fedjax-core consortium run                          a coordinator and three hospitals as processes of this machine: try this first
    fedjax-core data check mapping.toml                  what a study can use of this site's table, and what is to be done about the rest
    fedjax-core doctor site.toml                        is this site ready to join? what is to be done, and 1 where something is
    fedjax-core node site.toml --address ray.example:6379        Ray on a site's machine, with less open than `ray start` leaves
    fedjax-core keys make charite --folder keys          keys/charite.key stays; keys/charite.pub goes to the coordinator
    fedjax-core keys show keys/charite.pub               its line for the roster, and the fingerprint to compare by telephone
    fedjax-core certificates make tls charite=ray.charite.example,10.1.2.3      what Ray's TLS and token need there, in tls/charite
    fedjax-core certificates withdraw tls charite                               new ones for all others, when a site has left
    fedjax-core certificates show tls/charite                                   for whom, and until when
    fedjax-core account begin site.toml                  begins a site's privacy account, once
    fedjax-core account show site.toml                   the epsilon that its updates have spent so far
    fedjax-core release runs/heart --candidate heart.release:candidate   may this model be released? attacks, and 1 where they succeed
    fedjax-core audit head logs                          the line to give to somebody else now and then
    fedjax-core audit head coordinator/audit --of charite        what the coordinator holds of a site's log: the line to verify that by
    fedjax-core audit verify logs --keys keys/charite.pub --head 17:9f...
    fedjax-core audit show logs --keys keys/charite.pub --what left      the ledger of what left this site, proven first
    fedjax-core report runs/consortium                   one page of what a run did, in report.html
    fedjax-core watch runs/consortium --rounds 30        the same while it goes on, in this terminal
    fedjax-core audit prune logs --key keys/charite.key --before 2020-01-01 --archive old-logs

Every command exits with 0 if all is well, with 1 and a message on standard error if something is not, and
with 2 if it was not understood.

>>> main(["audit", "head", "/nowhere"])
1
"""

import sys
from collections.abc import Sequence

from tyro.extras import SubcommandApp

from fedjax_core.cli import (
    account,
    audit,
    certificates,
    consortium,
    data,
    doctor,
    keys,
    node,
    release,
    report,
    watch,
)
from fedjax_core.sites.audit import AuditError

_app = SubcommandApp()
_app.command(
    consortium.app, name="consortium", help="A coordinator and its sites on this machine: try this first."
)
_app.command(data.app, name="data", help="Look at a site's own table before it joins.")
_app.command(keys.app, name="keys", help="Make a site's key, and show its public half.")
_app.command(
    certificates.app,
    name="certificates",
    help="Make, show and withdraw what protects Ray: TLS certificates and a token.",
)
_app.command(account.app, name="account", help="What a site's updates have told so far, as an epsilon.")
_app.command(audit.app, name="audit", help="Read audit logs, and prove that nobody changed them.")
_app.command(doctor.doctor)
_app.command(node.node)
_app.command(report.report)
_app.command(watch.watch)
_app.command(release.release)


def main(args: Sequence[str] | None = None) -> int:
    """Runs one command, and returns its exit code."""
    try:
        _app.cli(prog="fedjax-core", description="Federated learning between sites.", args=args)
    except (AuditError, OSError, ValueError, RuntimeError) as error:
        print(f"fedjax-core: {error}", file=sys.stderr)
        return 1
    return 0
