"""Certificates of a test's own, in files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import trustme


class Files:
    """An authority, and the pairs it has issued, as files."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder, self.authority = folder, trustme.CA()
        self.ca = str(folder / "ca.pem")
        self.authority.cert_pem.write_to_path(self.ca)

    def issue(self, *names: str, kind: trustme.KeyType = trustme.KeyType.ECDSA) -> tuple[str, str]:
        """The paths of a certificate and of its key."""
        pair = self.authority.issue_cert(*names, key_type=kind)
        cert, key = self.folder / f"{names[0]}.crt", self.folder / f"{names[0]}.key"
        cert.write_bytes(b"".join(blob.bytes() for blob in pair.cert_chain_pems))
        pair.private_key_pem.write_to_path(key)
        return str(cert), str(key)

    def serving(self) -> dict[str, Any]:
        """Options of a gateway that serves as `localhost` and `127.0.0.1`."""
        cert, key = self.issue("localhost", "127.0.0.1")
        return {"server_cert_path": cert, "server_key_path": key}

    def calling(self) -> dict[str, Any]:
        """Options of a gateway that trusts this authority and shows a certificate of it."""
        cert, key = self.issue("gateway")
        return {"ca_cert_paths": [self.ca], "client_cert_path": cert, "client_key_path": key}


class Secret:
    """A mounted Kubernetes secret: its files are links through `..data`, which is swapped as a whole."""

    def __init__(self, folder: Path, files: dict[str, bytes]) -> None:
        folder.mkdir()
        self.folder, self.version = folder, 0
        self.swap(files)
        for name in files:
            (folder / name).symlink_to(Path("..data", name))

    def swap(self, files: dict[str, bytes]) -> None:
        """Puts these files in the place of all that there were."""
        self.version += 1
        data, link = self.folder / f"..{self.version}", self.folder / "..next"
        data.mkdir()
        for name, content in files.items():
            (data / name).write_bytes(content)
        link.symlink_to(data.name)
        link.rename(self.folder / "..data")

    def path(self, name: str) -> str:
        return str(self.folder / name)


def pair(authority: trustme.CA, *names: str) -> dict[str, bytes]:
    """A certificate with its chain, and its key, as a secret has them."""
    issued = authority.issue_cert(*names)
    chain = b"".join(blob.bytes() for blob in issued.cert_chain_pems)
    return {"tls.crt": chain, "tls.key": issued.private_key_pem.bytes()}
