"""Asks a topic's history, as it lies in the store, for flights and mean departure delay by carrier and month.

    analytics.py STORE_URL ANSWER.json [--spark]

DuckDB, Polars, pyarrow and, with --spark, Spark (tests/spark/run.sh) each read the Parquet files of the topic `flights`
from a directory (file://...) or a bucket (s3://..., with the AWS_* variables of tests/minio.sh), and each must answer
exactly what the file says: a list of [carrier, month, flights, mean delay]. The interpreter must have what
tests/analytics/requirements.txt names.
"""

import glob
import json
import os
import subprocess
import sys
import time
from urllib.parse import urlparse

import duckdb
import polars
import pyarrow
import pyarrow.compute
import pyarrow.dataset
import pyarrow.fs

FILES = "archive/topic=flights-*/*.parquet"


def in_duckdb(url):
    database = duckdb.connect()
    place = url.removeprefix("file://")
    if place == url:
        import duckdb_extension_httpfs
        packaged = glob.glob(os.path.dirname(duckdb_extension_httpfs.__file__) + "/extensions/*/httpfs.duckdb_extension")
        endpoint = urlparse(os.environ["AWS_ENDPOINT_URL"])
        database.execute("LOAD '%s'" % packaged[0])
        database.execute("CREATE SECRET (TYPE s3, KEY_ID '%s', SECRET '%s', REGION '%s', ENDPOINT '%s', URL_STYLE 'path', USE_SSL %s)" % (
            os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"], os.environ["AWS_REGION"], endpoint.netloc,
            endpoint.scheme == "https"))
    return database.execute("""
        SELECT event ->> 'carrier', (event ->> 'month')::INTEGER, count(*), avg((event ->> 'dep_delay')::INTEGER)
        FROM (SELECT decode(value)::JSON AS event FROM read_parquet('%s/%s'))
        GROUP BY ALL""" % (place, FILES)).fetchall()


def in_polars(url):
    place, options = url.removeprefix("file://"), None
    if place == url:
        options = {"aws_access_key_id": os.environ["AWS_ACCESS_KEY_ID"], "aws_secret_access_key": os.environ["AWS_SECRET_ACCESS_KEY"],
                   "aws_region": os.environ["AWS_REGION"], "aws_endpoint_url": os.environ["AWS_ENDPOINT_URL"],
                   "aws_allow_http": "true"}
    event = polars.Struct({"carrier": polars.String, "month": polars.Int64, "dep_delay": polars.Int64})
    found = (polars.scan_parquet("%s/%s" % (place, FILES), storage_options=options)
             .select(polars.col("value").cast(polars.String).str.json_decode(event).struct.unnest())
             .group_by("carrier", "month").agg(polars.len(), polars.mean("dep_delay"))
             .collect())
    return found.rows()


def in_pyarrow(url):
    place, files = url.removeprefix("file://"), pyarrow.fs.LocalFileSystem()
    if place == url:
        endpoint = urlparse(os.environ["AWS_ENDPOINT_URL"])
        files = pyarrow.fs.S3FileSystem(access_key=os.environ["AWS_ACCESS_KEY_ID"], secret_key=os.environ["AWS_SECRET_ACCESS_KEY"],
                                        region=os.environ["AWS_REGION"], endpoint_override=endpoint.netloc, scheme=endpoint.scheme)
        place = place.removeprefix("s3://")
    found = files.get_file_info(pyarrow.fs.FileSelector(place + "/archive", recursive=True))
    paths = [one.path for one in found if "/topic=flights-" in one.path and one.path.endswith(".parquet")]
    values = pyarrow.dataset.dataset(paths, filesystem=files, format="parquet").to_table(columns=["value"])["value"]
    events = [json.loads(value) for value in values.to_pylist()]
    table = pyarrow.table({name: [event[name] for event in events] for name in ("carrier", "month", "dep_delay")})
    grouped = table.group_by(["carrier", "month"]).aggregate([([], "count_all"), ("dep_delay", "mean")])
    return list(zip(*(grouped[name].to_pylist() for name in ("carrier", "month", "count_all", "dep_delay_mean"))))


def in_spark(url):
    place, settings = url.removeprefix("file://"), ""
    if place == url:
        place = place.replace("s3://", "s3a://", 1)
        settings = "SET fs.s3a.endpoint=%s;\nSET fs.s3a.path.style.access=true;\n" % os.environ["AWS_ENDPOINT_URL"]
    question = """
        SELECT event.carrier, event.month, count(*) AS flights, avg(event.dep_delay) AS delay
        FROM (SELECT from_json(cast(value AS string), 'carrier string, month int, dep_delay int') AS event
              FROM parquet.`%s/%s`)
        GROUP BY event.carrier, event.month;
        """ % (place, FILES)
    # It has two readers of Parquet: one for whole columns, and one for rows that some queries need.
    given = settings + question + "SET spark.sql.parquet.enableVectorizedReader=false;\n" + question
    script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../spark/run.sh")
    done = subprocess.run([script, "--json"], input=given, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit("Spark ended with %d: %s" % (done.returncode, done.stderr))
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    if [answer["columnar"] for answer in answers] != [True, False]:
        sys.exit("Spark did not use both of its readers")
    columns, rows = ([tuple(row.values()) for row in answer["rows"]] for answer in answers)
    if sorted(columns) != sorted(rows):
        sys.exit("the two readers of Spark do not agree")
    return columns


def main():
    url, expected, spark = sys.argv[1].rstrip("/"), sys.argv[2], "--spark" in sys.argv[3:]
    with open(expected) as file:
        expected = [tuple(row) for row in json.load(file)]
    told = []
    engines = [("DuckDB " + duckdb.__version__, in_duckdb), ("Polars " + polars.__version__, in_polars),
               ("pyarrow " + pyarrow.__version__, in_pyarrow)]
    if spark:
        engines.append(("Spark, started and asked twice,", in_spark))
    for name, ask in engines:
        began = time.monotonic()
        answer = sorted(tuple(row) for row in ask(url))
        if answer != sorted(expected):
            wrong = sorted(set(answer) ^ set(expected))
            sys.exit("%s answers otherwise than the file, in %d rows, the first of %s" % (name, len(wrong), wrong[:4]))
        told.append("%s in %.1f s" % (name, time.monotonic() - began))
    print("%d rows, as the file answers: %s" % (len(expected), ", ".join(told)))


if __name__ == "__main__":
    main()
