"""`fedjax-core certificates ...`: TLS certificates and the token, which protect Ray between machines."""

from collections.abc import Mapping
from pathlib import Path

from tyro.conf import Positional
from tyro.extras import SubcommandApp

from fedjax_core.sites.own_file import VARIABLE
from fedjax_core.sites.refusal import check_name
from fedjax_core.sites.transport import certificates, ray_security

app = SubcommandApp()


@app.command
def make(folder: Positional[Path], nodes: Positional[tuple[str, ...]], days: int = 365) -> None:
    """Makes a certificate, its key and a copy of the token for each machine, in FOLDER/NAME; the authority
    too if there is none.

    Args:
        folder: Where all of it goes; FOLDER/authority stays with the person who makes certificates.
        nodes: Each machine as NAME=HOST or NAME=HOST,HOST: the names and addresses by which the others reach
            it.
        days: How long the certificates are valid.
    """
    hosts = {}
    for text in nodes:
        name, equals, rest = text.partition("=")
        if not (equals and rest):
            raise ValueError(
                f"{text!r} should read NAME=HOST or NAME=HOST,HOST, such as charite=ray.charite.example,10.1.2.3"
            )
        hosts[check_name(name, "the machine")] = rest.split(",")
    _tell(folder, ray_security.equip(folder, hosts, days))


@app.command
def withdraw(folder: Positional[Path], names: Positional[tuple[str, ...]] = (), days: int = 365) -> None:
    """Makes a new authority, a new token and new certificates for all machines except NAMES, whose old files
    then no longer work.

    Args:
        folder: Where `certificates make` wrote; what was there moves to FOLDER/withdrawn-1.
        names: The machines that have left, or whose folder others may know; none: the same machines, all with
            new files.
        days: How long the new certificates are valid.
    """
    made = ray_security.withdraw(folder, names, days)
    _tell(folder, made)
    gone = f"{' and '.join(names)} and " if names else ""
    print(
        f"Stop Ray on every machine now, and start it again with the new folders: until then {gone}whoever has an old token still gets in."
    )
    print("A site that has left also goes from [keys] of the coordinator's roster to [revoked].")


def _tell(folder: Path, made: Mapping[str, certificates.Files]) -> None:
    """Prints what to do with the files of each machine."""
    for name, files in made.items():
        print(f"{files.certificate}: {certificates.describe(files.certificate)}")
        print(
            f"  copy {files.certificate.parent} to {name} unread by anybody else, and have Ray start there with (the paths as there):"
        )
        print(
            "".join(
                f"  {key}={value}\n"
                for key, value in ray_security.environment(files.certificate.parent).items()
            ),
            end="",
        )
    print(
        f"Ray at a site starts with {VARIABLE}=PATH too, where PATH is the site's own site.toml: its process reads that and no other."
    )
    print(f"{folder / 'authority'} lets anybody in: keep it where only you can read it.")


@app.command
def show(paths: Positional[tuple[Path, ...]]) -> None:
    """Shows the names and the end of validity of certificates; for a machine's folder, whether all in it fits
    together.

    Args:
        paths: Certificates, or folders as `certificates make` writes them.
    """
    for path in paths:
        if path.is_dir():
            missing = ray_security.lacking(ray_security.environment(path))
            if missing:
                raise ValueError(f"{path} lacks {' and '.join(missing)}")
        print(f"{path}: {certificates.describe(path / 'node.crt' if path.is_dir() else path)}")
