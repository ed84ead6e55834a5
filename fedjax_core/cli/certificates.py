"""`fedjax-core certificates ...`: what protects Ray between machines."""

from pathlib import Path

from tyro.conf import Positional
from tyro.extras import SubcommandApp

from fedjax_core.sites import certificates, ray_security
from fedjax_core.sites.base import check_name

app = SubcommandApp()


@app.command
def make(folder: Positional[Path], nodes: Positional[tuple[str, ...]], days: int = 365) -> None:
    """Makes a certificate, its key and a copy of the token for each machine, in FOLDER/NAME; the authority too, where there is none.

    Args:
        folder: Where all of it goes; FOLDER/authority stays with whoever makes certificates.
        nodes: Each machine as NAME=HOST or NAME=HOST,HOST: the names and addresses by which the others reach it.
        days: How long the certificates are valid.
    """
    hosts = {}
    for text in nodes:
        name, equals, rest = text.partition("=")
        if not (equals and rest):
            raise ValueError(f"{text!r} should read NAME=HOST or NAME=HOST,HOST, such as charite=ray.charite.example,10.1.2.3")
        hosts[check_name(name, "the machine")] = rest.split(",")
    for name, files in ray_security.equip(folder, hosts, days).items():
        print(f"{files.certificate}: {certificates.describe(files.certificate)}")
        print(f"  copy {files.certificate.parent} to {name} unread by anybody else, and have Ray start there with (the paths as there):")
        print("".join(f"  {key}={value}\n" for key, value in ray_security.environment(files.certificate.parent).items()), end="")
    print(f"{folder / 'authority'} lets anybody in: keep it where only you can read it.")


@app.command
def show(paths: Positional[tuple[Path, ...]]) -> None:
    """Shows for whom certificates are and until when; of a machine's folder, whether all in it fits.

    Args:
        paths: Certificates, or folders as `certificates make` writes them.
    """
    for path in paths:
        if path.is_dir():
            found = ray_security.lacking(ray_security.environment(path))
            if found:
                raise ValueError(f"{path} lacks {' and '.join(found)}")
        print(f"{path}: {certificates.describe(path / 'node.crt' if path.is_dir() else path)}")
