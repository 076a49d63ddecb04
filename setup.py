"""Add the bundles of the top-level folder to the package, as monai_vit3d/bundles; setup.cfg holds all else."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["monai_vit3d*"]), "monai_vit3d.bundles"],
    package_dir={"monai_vit3d.bundles": "bundles"},
)
