-- Two roles for apex-creds in a PostgreSQL database, each with what it needs and no more.
--
--   createdb apex_creds
--   psql -X -v ON_ERROR_STOP=1 -d apex_creds -f roles.sql
--   apex-creds db upgrade --storage 'postgresql+psycopg://apex_owner@HOST/apex_creds'
--
-- Run by a superuser (or the database's owner with CREATEROLE), as often as you like.
--
-- apex_owner  owns the tables and makes and upgrades them (apex-creds db upgrade). Use it
--             for that only, from an operator's machine.
-- apex_app    what every process of the vault logs in as. It can't make, change or drop a
--             table; it can't delete a row, so that nothing of the log's copy and no
--             document's row can be made to vanish; lines once added it can't change.
--
-- Neither has a password yet. Give them one without it being in a file or a log:
--
--   psql -d apex_creds -c '\password apex_app'

\set ON_ERROR_STOP on

SELECT 'CREATE ROLE apex_owner LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION'
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'apex_owner') \gexec
SELECT 'CREATE ROLE apex_app LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION'
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'apex_app') \gexec

BEGIN;

-- This database is theirs alone.
SELECT format('REVOKE ALL ON DATABASE %I FROM PUBLIC', current_database()) \gexec
SELECT format('GRANT CONNECT ON DATABASE %I TO apex_owner, apex_app', current_database()) \gexec
REVOKE ALL ON SCHEMA public FROM PUBLIC;
GRANT USAGE, CREATE ON SCHEMA public TO apex_owner;
GRANT USAGE ON SCHEMA public TO apex_app;

-- Tables that are there already (this is run again), whichever role ran the upgrade.
SELECT format('ALTER TABLE %s OWNER TO apex_owner', c.oid::regclass)
FROM pg_class c
WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r'
  AND c.relname IN ('apex_schema', 'apex_spaces', 'apex_documents', 'apex_claims', 'apex_lines')
\gexec

-- What apex_app may do, now (where the tables are there) ...
SELECT format('REVOKE ALL ON TABLE %s FROM PUBLIC, apex_app', to_regclass('public.' || t.name))
FROM (VALUES ('apex_schema'), ('apex_spaces'), ('apex_documents'), ('apex_claims'),
             ('apex_lines')) AS t (name)
WHERE to_regclass('public.' || t.name) IS NOT NULL \gexec
SELECT format('GRANT %s ON TABLE %s TO apex_app', t.rights, to_regclass('public.' || t.name))
FROM (VALUES ('apex_schema', 'SELECT'), ('apex_spaces', 'SELECT, INSERT'),
             ('apex_documents', 'SELECT, INSERT, UPDATE'),
             ('apex_claims', 'SELECT, INSERT, UPDATE'), ('apex_lines', 'SELECT, INSERT')
     ) AS t (name, rights)
WHERE to_regclass('public.' || t.name) IS NOT NULL \gexec

COMMIT;

-- ... so run this once more after the first `apex-creds db upgrade`.
