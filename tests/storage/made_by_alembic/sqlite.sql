-- A database as version 0001 of the tables was made, by Alembic 1.20.1 on SQLAlchemy 2.1.9.
BEGIN TRANSACTION;
CREATE TABLE apex_claims (
  space VARCHAR(64) NOT NULL,
  name VARCHAR(64) NOT NULL,
  PRIMARY KEY (space, name)
);
CREATE TABLE apex_documents (
  space VARCHAR(64) NOT NULL,
  name VARCHAR(64) NOT NULL,
  version BIGINT NOT NULL,
  changed BIGINT NOT NULL,
  data BLOB,
  written DATETIME DEFAULT CURRENT_TIMESTAMP NOT NULL,
  PRIMARY KEY (space, name)
);
INSERT INTO "apex_documents" VALUES('00112233','keystore',2692419620376975894,1,X'746865206B65792073746F7265','2026-11-29 22:51:36');
INSERT INTO "apex_documents" VALUES('00112233','a',3531261886462601258,3,X'7365636F6E64','2026-11-29 22:51:36');
INSERT INTO "apex_documents" VALUES('00112233','gone',2117331758913147983,5,NULL,'2026-11-29 22:51:36');
CREATE TABLE apex_lines (
  space VARCHAR(64) NOT NULL,
  stream VARCHAR(64) NOT NULL,
  seq BIGINT NOT NULL,
  line BLOB NOT NULL,
  PRIMARY KEY (space, stream, seq)
);
INSERT INTO "apex_lines" VALUES('00112233','node',0,X'6F6E65');
INSERT INTO "apex_lines" VALUES('00112233','node',1,X'74776F');
CREATE TABLE apex_schema (
  version_num VARCHAR(32) NOT NULL,
  CONSTRAINT apex_schema_pkc PRIMARY KEY (version_num)
);
INSERT INTO "apex_schema" VALUES('0001');
CREATE TABLE apex_spaces (
  space VARCHAR(64) NOT NULL,
  made DATETIME DEFAULT CURRENT_TIMESTAMP NOT NULL,
  PRIMARY KEY (space)
);
INSERT INTO "apex_spaces" VALUES('00112233','2026-11-29 22:51:36');
CREATE INDEX apex_documents_changed ON apex_documents (space, changed);
COMMIT;
