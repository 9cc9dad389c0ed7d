from setuptools import find_packages, setup

# Recipes lie at the top of a checkout, where people look for them, and travel in the wheel as fastkd/configs.
found = find_packages(include=["fastkd", "fastkd.*", "loaders", "loaders.*"])
setup(packages=[*found, "fastkd.configs"], package_dir={"fastkd.configs": "configs"})
