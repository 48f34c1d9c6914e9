# The graph of work: a notebook runs when its source, its values or the code that it imports changed; then the book is
# built. `make book` starts it (see bootstrap.py); on a cluster: snakemake --executor slurm --config profile=paper.
# Snakemake deletes a rule's outputs when the rule starts, so all of them lie in _build/run/.
import os
import sys
from pathlib import Path

sys.path.insert(0, workflow.basedir)
from clif_kit import fresh, notebooks
from snakemake.exceptions import WorkflowError

PROFILE = config.get("profile", "quick")
if PROFILE not in notebooks.PROFILES:
    raise WorkflowError(f"unknown profile {PROFILE!r}; there are: {', '.join(notebooks.PROFILES)}")
PAGES = sorted(
    os.path.relpath(path)
    for folder in ("book", "data_scripts")
    for path in Path(folder).rglob("*")
    if path.is_file() and "__pycache__" not in path.parts
)


def notebook(wildcards):
    return notebooks.FOLDER / f"{wildcards.name}.ipynb"


def values(wildcards):
    return notebooks.profile_values(wildcards.name, wildcards.profile)


wildcard_constraints:
    profile="|".join(notebooks.PROFILES),
    name="[^/.]+",


rule book:
    input:
        expand("_build/run/{profile}/{name}.{kind}", profile=PROFILE, name=notebooks.names(), kind=("ipynb", "json")),
        PAGES,
        sorted(str(path) for path in (*Path().glob("_*.yml"), *Path().glob("*.md"))),
        sorted(os.path.relpath(path) for path in notebooks.PACKAGE.glob("*.py")),  # the API page
    output:
        touch(f"_build/run/{PROFILE}/book.done"),
    threads: 2
    shell:
        "exec {sys.executable:q} -m clif_kit.pages build --profile {PROFILE}"


rule notebook:
    input:
        notebook=ancient("notebooks/{name}.ipynb"),  # outputs are stored in it; params.source is what counts
        code=lambda wildcards: [os.path.relpath(path) for path in fresh.code_files(notebook(wildcards))],
        lock="requirements.lock",
    output:
        "_build/run/{profile}/{name}.ipynb",
        "_build/run/{profile}/{name}.json",
    params:
        values=values,
        source=lambda wildcards: fresh.source(notebook(wildcards)),
        box=lambda wildcards: fresh.judged_by(wildcards.name, wildcards.profile),
    shell:
        "exec {sys.executable:q} -m clif_kit.runs {input.notebook:q} --profile {wildcards.profile}"
