-- A database as version 0001 of the tables was made, by Alembic 1.20.1 on SQLAlchemy 2.1.9.
CREATE TABLE public.apex_claims (
    space character varying(64) NOT NULL,
    name character varying(64) NOT NULL
);
CREATE TABLE public.apex_documents (
    space character varying(64) NOT NULL,
    name character varying(64) NOT NULL,
    version bigint NOT NULL,
    changed bigint NOT NULL,
    data bytea,
    written timestamp with time zone DEFAULT now() NOT NULL
);
ALTER TABLE ONLY public.apex_documents ALTER COLUMN data SET STORAGE EXTERNAL;
CREATE TABLE public.apex_lines (
    space character varying(64) NOT NULL,
    stream character varying(64) NOT NULL,
    seq bigint NOT NULL,
    line bytea NOT NULL
);
CREATE TABLE public.apex_schema (
    version_num character varying(32) NOT NULL
);
CREATE TABLE public.apex_spaces (
    space character varying(64) NOT NULL,
    made timestamp with time zone DEFAULT now() NOT NULL
);
INSERT INTO public.apex_claims VALUES ('00112233', 'a');
INSERT INTO public.apex_documents VALUES ('00112233', 'keystore', 1120099013218308972, 726, '\x746865206b65792073746f7265', '2026-11-29 22:51:39.099167+00');
INSERT INTO public.apex_documents VALUES ('00112233', 'a', 1978582517285781691, 730, '\x7365636f6e64', '2026-11-29 22:51:39.109909+00');
INSERT INTO public.apex_documents VALUES ('00112233', 'gone', 4344967546145650784, 734, NULL, '2026-11-29 22:51:39.111105+00');
INSERT INTO public.apex_lines VALUES ('00112233', 'node', 0, '\x6f6e65');
INSERT INTO public.apex_lines VALUES ('00112233', 'node', 1, '\x74776f');
INSERT INTO public.apex_schema VALUES ('0001');
INSERT INTO public.apex_spaces VALUES ('00112233', '2026-11-29 22:51:39.072371+00');
ALTER TABLE ONLY public.apex_claims
    ADD CONSTRAINT apex_claims_pkey PRIMARY KEY (space, name);
ALTER TABLE ONLY public.apex_documents
    ADD CONSTRAINT apex_documents_pkey PRIMARY KEY (space, name);
ALTER TABLE ONLY public.apex_lines
    ADD CONSTRAINT apex_lines_pkey PRIMARY KEY (space, stream, seq);
ALTER TABLE ONLY public.apex_schema
    ADD CONSTRAINT apex_schema_pkc PRIMARY KEY (version_num);
ALTER TABLE ONLY public.apex_spaces
    ADD CONSTRAINT apex_spaces_pkey PRIMARY KEY (space);
CREATE INDEX apex_documents_changed ON public.apex_documents USING btree (space, changed);
