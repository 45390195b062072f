"""The query by which KEDA scales workers counts what waits and what is in progress."""

from pathlib import Path

import yaml
from sqlalchemy import text

from .test_job_queue import claim, complete, new_job

FILE = Path(__file__).resolve().parents[3] / "config/deploy/kubernetes/chunk-worker.yaml"


def test_the_scaling_query_counts_unfinished_chunks(database):
    scaled = list(yaml.safe_load_all(FILE.read_text()))[2]
    query = text(scaled["spec"]["triggers"][0]["metadata"]["query"])
    new_job(database, n_chunks=3)
    complete(database, claim(database))
    claim(database)
    with database.session() as session:
        assert session.scalar(query) == 2
