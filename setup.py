"""Package list. `kernels/` stands at the top of the checkout and installs as `fastdc.kernels`.

The list is read from `kernels/` itself, never through the symlink `fastdc/kernels`: an sdist omits the
symlink, and a wheel built from such a tree would silently hold no kernel.
"""

from setuptools import find_packages, setup

kernel_packages = ["fastdc.kernels"] + [f"fastdc.kernels.{name}" for name in find_packages("kernels")]
face_packages = [name for name in find_packages(".", include=["fastdc*"]) if not name.startswith("fastdc.kernels")]

setup(packages=face_packages + kernel_packages, package_dir={"fastdc": "fastdc", "fastdc.kernels": "kernels"})
