"""A certificate authority of the tests' own."""

import subprocess
from pathlib import Path

EXTENSIONS = "subjectAltName=IP:127.0.0.1,DNS:localhost"


class Authority:
    """Signs certificates for an hour; everything lies in ``folder``."""

    def __init__(self, folder: Path, name: str) -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        self.certificate = folder / "ca.pem"
        self._key = folder / "ca.key"
        key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", str(self._key)]
        _openssl("req", "-x509", *key, "-subj", f"/CN={name}", "-days", "1", "-out", str(self.certificate))

    def sign(self, name: str) -> tuple[Path, Path]:
        """A certificate for this name on the loopback interface, and its key."""
        request, extensions = self._folder / f"{name}.csr", self._folder / f"{name}.ext"
        certificate, key = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        extensions.write_text(EXTENSIONS)
        new = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", str(key)]
        _openssl("req", *new, "-subj", f"/CN={name}", "-out", str(request))
        authority = ["-CA", str(self.certificate), "-CAkey", str(self._key), "-CAcreateserial"]
        files = ["-in", str(request), "-extfile", str(extensions), "-out", str(certificate)]
        _openssl("x509", "-req", *authority, "-days", "1", *files)
        return certificate, key


def _openssl(*arguments: str) -> None:
    done = subprocess.run(["openssl", *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
