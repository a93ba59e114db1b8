"""What the role of a service may do on PostgreSQL: the SQL, for the owner of the database to run after `init`."""

from carbon_points.journal.journal import partition_name

# The log is append-only by these rights: nothing but INSERT and SELECT on what must never change.
_PARTITION = """\
GRANT USAGE ON SCHEMA {schema} TO {role};
REVOKE ALL ON ALL TABLES IN SCHEMA {schema} FROM {role};
GRANT SELECT, INSERT ON {schema}.entries, {schema}.claims TO {role};
GRANT SELECT ON {schema}.about TO {role};
GRANT SELECT, UPDATE ON {schema}.counter TO {role};
GRANT SELECT, INSERT, UPDATE ON {schema}.states TO {role};
"""
_BESIDE = """\
GRANT USAGE ON SCHEMA read, directory, webhooks TO {role};
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA read, directory, webhooks TO {role};
-- a rebuild makes the schema read anew, and with it the rights
ALTER DEFAULT PRIVILEGES GRANT USAGE ON SCHEMAS TO {role};
ALTER DEFAULT PRIVILEGES GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO {role};
"""


def grants(role: str, partitions: int) -> str:
    """In one transaction, so that a service that runs meanwhile is never without its rights. May be run again."""
    quoted = '"' + role.replace('"', '""') + '"'
    each = [_PARTITION.format(schema=partition_name(number), role=quoted) for number in range(partitions)]
    return "BEGIN;\n" + "".join(each) + _BESIDE.format(role=quoted) + "COMMIT;\n"
