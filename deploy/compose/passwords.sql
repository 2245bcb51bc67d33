-- The passwords of the roles that roles.sql made, read from files by the server's own psql:
-- they are on no command line, and in no log.
\set ON_ERROR_STOP on
\set owner `cat "${APEX_CREDS_SECRET_FILES:-/run/secrets}/owner_password"`
\set app `cat "${APEX_CREDS_SECRET_FILES:-/run/secrets}/app_password"`
SET log_statement = 'none';
SET log_min_error_statement = 'panic';
SET password_encryption = 'scram-sha-256';
ALTER ROLE apex_owner PASSWORD :'owner';
ALTER ROLE apex_app PASSWORD :'app';
