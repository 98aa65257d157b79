SET statement_timeout = 0;
SET lock_timeout = 0;
SET idle_in_transaction_session_timeout = 0;
SET client_encoding = 'UTF8';
SET standard_conforming_strings = on;
SELECT pg_catalog.set_config('search_path', '', false);
SET check_function_bodies = false;
SET xmloption = content;
SET client_min_messages = warning;
SET row_security = off;
CREATE SCHEMA kept;
SET default_tablespace = '';
SET default_table_access_method = heap;
CREATE TABLE kept.places (
    id integer NOT NULL,
    step text NOT NULL COLLATE pg_catalog."C",
    visit bigint NOT NULL,
    act text NOT NULL COLLATE pg_catalog."C"
);
CREATE TABLE kept.runs (
    id bigint NOT NULL,
    parent bigint NOT NULL,
    "position" bigint,
    applied bigint,
    elapsed double precision,
    place integer NOT NULL,
    form integer,
    attempts integer,
    crashes integer,
    used smallint,
    abandoned smallint,
    key text NOT NULL COLLATE pg_catalog."C",
    status text COLLATE pg_catalog."C",
    digest text COLLATE pg_catalog."C",
    element json,
    value json,
    change json,
    own json,
    error json,
    reason text,
    winner_act text,
    winner_key text,
    long_key text
);
CREATE VIEW kept.child_runs AS
 SELECT runs.id,
    runs.parent,
    places.step,
    places.visit,
    places.act,
    COALESCE(runs.long_key, runs.key) AS key,
    runs."position",
    COALESCE(runs.status, 'running'::text) AS status,
    runs.element,
    runs.value,
    (runs.error ->> '@type'::text) AS error_type,
    (runs.error ->> 'text'::text) AS error_text,
    runs.error,
    runs.reason,
    runs.applied,
    runs.used,
    runs.attempts,
    runs.elapsed,
    runs.abandoned
   FROM (kept.runs
     JOIN kept.places ON ((places.id = runs.place)))
  WHERE (runs."position" IS NOT NULL);
CREATE TABLE kept.claims (
    run_id text NOT NULL COLLATE pg_catalog."C",
    epoch bigint NOT NULL,
    saves bigint NOT NULL,
    execution text,
    host text NOT NULL,
    boot text NOT NULL,
    pid bigint NOT NULL,
    started text NOT NULL,
    lease double precision NOT NULL,
    seen_at double precision NOT NULL
)
WITH (fillfactor='50');
CREATE TABLE kept.forms (
    id integer NOT NULL,
    form text NOT NULL COLLATE pg_catalog."C"
);
ALTER TABLE kept.forms ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME kept.forms_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);
CREATE TABLE kept.history (
    id bigint NOT NULL,
    run bigint NOT NULL,
    number bigint NOT NULL,
    kind text NOT NULL COLLATE pg_catalog."C",
    step text NOT NULL,
    data json NOT NULL
);
ALTER TABLE kept.history ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME kept.history_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);
CREATE TABLE kept.layout (
    version integer NOT NULL
);
ALTER TABLE kept.places ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME kept.places_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);
CREATE TABLE kept.results (
    key text NOT NULL COLLATE pg_catalog."C",
    ends_at double precision,
    operations json NOT NULL
);
CREATE TABLE kept.roots (
    run bigint NOT NULL,
    application text NOT NULL,
    version text NOT NULL,
    began_at double precision NOT NULL,
    ended_at double precision,
    first json NOT NULL,
    after text,
    visits json NOT NULL,
    forked_from text,
    forked_at bigint,
    error text,
    secret text DEFAULT '[]'::text NOT NULL
);
CREATE VIEW kept.root_runs AS
 SELECT runs.id,
    COALESCE(runs.long_key, runs.key) AS run_id,
    roots.application,
    roots.version,
    COALESCE(runs.status, 'running'::text) AS status,
    runs.reason,
    to_timestamp(roots.began_at) AS began_at,
    to_timestamp(roots.ended_at) AS ended_at,
    roots.first,
    roots.forked_from,
    roots.forked_at,
    roots.error
   FROM (kept.runs
     JOIN kept.roots ON ((roots.run = runs.id)));
ALTER TABLE kept.runs ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME kept.runs_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);
INSERT INTO kept.claims VALUES ('listed', 1, 12, NULL, 'host', 'boot', 1, '1', 15, 1796074285.912891);
INSERT INTO kept.claims VALUES ('map', 1, 9, NULL, 'host', 'boot', 1, '1', 15, 1796074285.876237);
INSERT INTO kept.claims VALUES ('errors', 1, 8, NULL, 'host', 'boot', 1, '1', 15, 1796074285.950204);
INSERT INTO kept.claims VALUES ('frontier', 1, 6, NULL, 'host', 'boot', 1, '1', 15, 1796074285.99289);
INSERT INTO kept.claims VALUES ('loop', 1, 3, NULL, 'host', 'boot', 1, '1', 15, 1796074286.426268);
INSERT INTO kept.claims VALUES ('nested', 1, 9, NULL, 'host', 'boot', 1, '1', 15, 1796074286.130564);
INSERT INTO kept.claims VALUES ('race', 1, 5, NULL, 'host', 'boot', 1, '1', 15, 1796074286.069165);
INSERT INTO kept.claims VALUES ('class', 1, 4, NULL, 'host', 'boot', 1, '1', 15, 1796074286.464969);
INSERT INTO kept.claims VALUES ('own', 1, 5, NULL, 'host', 'boot', 1, '1', 15, 1796074286.109621);
INSERT INTO kept.claims VALUES ('node', 1, 8, NULL, 'host', 'boot', 1, '1', 15, 1796074286.25454);
INSERT INTO kept.claims VALUES ('done', 1, 2, NULL, 'host', 'boot', 1, '1', 15, 1796074286.525789);
INSERT INTO kept.claims VALUES ('asking', 1, 3, NULL, 'host', 'boot', 1, '1', 15, 1796074286.396741);
INSERT INTO kept.claims VALUES ('lost', 1, 3, NULL, 'host', 'boot', 1, '1', 15, 1796074286.563864);
INSERT INTO kept.forms OVERRIDING SYSTEM VALUE VALUES (1, '{"applied": ["put", "titles"], "own": [2, "parse", "title"]}');
INSERT INTO kept.forms OVERRIDING SYSTEM VALUE VALUES (2, '{"applied": ["within", "out"], "own": null}');
INSERT INTO kept.forms OVERRIDING SYSTEM VALUE VALUES (3, '{"applied": ["put", "odds"], "own": [1, "odd", "m"]}');
INSERT INTO kept.forms OVERRIDING SYSTEM VALUE VALUES (4, '{"applied": ["put", "looks"], "own": [1, "look", "seen"]}');
INSERT INTO kept.forms OVERRIDING SYSTEM VALUE VALUES (5, '{"applied": null, "own": [1, "visit", "grown"]}');
INSERT INTO kept.forms OVERRIDING SYSTEM VALUE VALUES (6, '{"applied": null, "own": [1, "quick", "answer"]}');
INSERT INTO kept.forms OVERRIDING SYSTEM VALUE VALUES (7, '{"applied": null, "own": [1, "square", "square"]}');
INSERT INTO kept.forms OVERRIDING SYSTEM VALUE VALUES (8, '{"applied": ["put", "inner"], "own": [2, "parse", "title"]}');
INSERT INTO kept.forms OVERRIDING SYSTEM VALUE VALUES (11, '{"applied": null, "own": [1, "left", "m"]}');
INSERT INTO kept.forms OVERRIDING SYSTEM VALUE VALUES (12, '{"applied": null, "own": [1, "right", "m"]}');
INSERT INTO kept.history OVERRIDING SYSTEM VALUE VALUES (1, 1, 0, 'begun', 'titles', '{"acts":["page"],"versions":["fetch=1,parse=1"],"keyed":true,"take":"title","into":"titles","shape":"by key","errors_into":null,"reduces":false,"grows":false,"until":"all"}');
INSERT INTO kept.history OVERRIDING SYSTEM VALUE VALUES (2, 1, 1, 'update', 'titles', '{"number":1,"do":[["set","titles",{"@":"StateMap","value":{}}]],"step":"titles"}');
INSERT INTO kept.history OVERRIDING SYSTEM VALUE VALUES (3, 2, 1, 'update', 'fetch', '{"number":1,"do":[["set","page","page 1"]],"step":"fetch"}');
INSERT INTO kept.history OVERRIDING SYSTEM VALUE VALUES (4, 2, 1, 'completed', 'fetch', '0');
INSERT INTO kept.history OVERRIDING SYSTEM VALUE VALUES (5, 3, 1, 'update', 'fetch', '{"number":1,"do":[["set","page","page 2"]],"step":"fetch"}');
INSERT INTO kept.history OVERRIDING SYSTEM VALUE VALUES (6, 3, 1, 'completed', 'fetch', '0');
INSERT INTO kept.history OVERRIDING SYSTEM VALUE VALUES (7, 4, 1, 'update', 'fetch', '{"number":1,"do":[["set","page","page 3"]],"step":"fetch"}');
INSERT INTO kept.history OVERRIDING SYSTEM VALUE VALUES (8, 4, 1, 'completed', 'fetch', '0');
INSERT INTO kept.history OVERRIDING SYSTEM VALUE VALUES (9, 5, 0, 'begun', 'listed', '{"acts":["fetch","both"],"versions":["fetch=1","fetch=1,parse=1"],"keyed":false,"take":["page"],"into":"out","shape":"by position and act","errors_into":null,"reduces":false,"grows":false,"until":"all"}');
INSERT INTO kept.history OVERRIDING SYSTEM VALUE VALUES (10, 5, 1, 'update', 'listed', '{"number":1,"do":[["set","out",{"@":"PositionedList","value":[],"at":[]}]],"step":"listed"}');
INSERT INTO kept.history OVERRIDING SYSTEM VALUE VALUES (11, 7, 1, 'update', 'fetch', '{"number":1,"do":[["set","page","page 1"]],"step":"fetch"}');
INSERT INTO kept.history OVERRIDING SYSTEM VALUE VALUES (12, 7, 1, 'completed', 'fetch', '0');
INSERT INTO kept.history OVERRIDING SYSTEM VALUE VALUES (13, 9, 1, 'update', 'fetch', '{"number":1,"do":[["set","page","page 2"]],"step":"fetch"}');
INSERT INTO kept.history OVERRIDING SYSTEM VALUE VALUES (14, 9, 1, 'completed', 'fetch', '0');
INSERT INTO kept.history OVERRIDING SYSTEM VALUE VALUES (15, 11, 1, 'update', 'fetch', '{"number":1,"do":[["set","page","page 3"]],"step":"fetch"}');
INSERT INTO kept.history OVERRIDING SYSTEM VALUE VALUES (16, 11, 1, 'completed', 'fetch', '0');
INSERT INTO kept.history OVERRIDING SYSTEM VALUE VALUES (17, 12, 0, 'begun', 'odds', '{"acts":["odd"],"versions":["odd=1"],"keyed":true,"take":"m","into":"odds","shape":"by key","errors_into":"bad","reduces":false,"grows":false,"until":"all"}');
INSERT INTO kept.history OVERRIDING SYSTEM VALUE VALUES (18, 12, 1, 'update', 'odds', '{"number":1,"do":[["set","odds",{"@":"StateMap","value":{}}],["set","bad",{"@":"StateMap","value":{}}]],"step":"odds"}');
INSERT INTO kept.history OVERRIDING SYSTEM VALUE VALUES (19, 12, 5, 'completed', 'odds', '5');
INSERT INTO kept.history OVERRIDING SYSTEM VALUE VALUES (20, 12, 5, 'begun', 'looks', '{"acts":["look"],"versions":["look=1"],"keyed":true,"take":"seen","into":"looks","shape":"by key","errors_into":null,"reduces":false,"grows":false,"until":"all"}');
INSERT INTO kept.history OVERRIDING SYSTEM VALUE VALUES (21, 12, 6, 'update', 'looks', '{"number":6,"do":[["set","looks",{"@":"StateMap","value":{}}]],"step":"looks"}');
INSERT INTO kept.history OVERRIDING SYSTEM VALUE VALUES (22, 19, 0, 'begun', 'frontier', '{"acts":["visit"],"versions":["visit=1"],"keyed":true,"take":null,"into":null,"shape":null,"errors_into":null,"reduces":true,"grows":true,"until":"all"}');
INSERT INTO kept.history OVERRIDING SYSTEM VALUE VALUES (23, 24, 0, 'begun', 'answer', '{"acts":["slow","quick"],"versions":["slow=1","quick=1"],"keyed":null,"take":null,"into":"answer","shape":"one","errors_into":null,"reduces":false,"grows":false,"until":"first(1)"}');
INSERT INTO kept.history OVERRIDING SYSTEM VALUE VALUES (24, 24, 1, 'decision', 'answer', '[["quick",""],[["quick",""]],"''quick'' decided fan-out ''answer''"]');
INSERT INTO kept.history OVERRIDING SYSTEM VALUE VALUES (25, 24, 1, 'completed', 'answer', '1');
INSERT INTO kept.history OVERRIDING SYSTEM VALUE VALUES (26, 31, 0, 'begun', 'outer', '{"acts":["inner"],"versions":["inner=page=fetch=1,parse=1"],"keyed":true,"take":"inner","into":"outer","shape":"by key","errors_into":null,"reduces":false,"grows":false,"until":"all"}');
INSERT INTO kept.history OVERRIDING SYSTEM VALUE VALUES (27, 31, 1, 'update', 'outer', '{"number":1,"do":[["set","outer",{"@":"StateMap","value":{}}]],"step":"outer"}');
INSERT INTO kept.history OVERRIDING SYSTEM VALUE VALUES (28, 32, 0, 'begun', 'inner', '{"acts":["page"],"versions":["fetch=1,parse=1"],"keyed":true,"take":"title","into":"inner","shape":"by key","errors_into":null,"reduces":false,"grows":false,"until":"all"}');
INSERT INTO kept.history OVERRIDING SYSTEM VALUE VALUES (29, 32, 1, 'update', 'inner', '{"number":1,"do":[["set","inner",{"@":"StateMap","value":{}}]],"step":"inner"}');
INSERT INTO kept.history OVERRIDING SYSTEM VALUE VALUES (30, 33, 1, 'update', 'fetch', '{"number":1,"do":[["set","page","page 2"]],"step":"fetch"}');
INSERT INTO kept.history OVERRIDING SYSTEM VALUE VALUES (31, 33, 1, 'completed', 'fetch', '0');
INSERT INTO kept.history OVERRIDING SYSTEM VALUE VALUES (32, 34, 1, 'update', 'fetch', '{"number":1,"do":[["set","page","page 3"]],"step":"fetch"}');
INSERT INTO kept.history OVERRIDING SYSTEM VALUE VALUES (33, 34, 1, 'completed', 'fetch', '0');
INSERT INTO kept.history OVERRIDING SYSTEM VALUE VALUES (34, 36, 0, 'begun', 'titles', '{"acts":["page"],"versions":["fetch=1,parse=1"],"keyed":true,"take":"title","into":"titles","shape":"by key","errors_into":null,"reduces":false,"grows":false,"until":"all"}');
INSERT INTO kept.history OVERRIDING SYSTEM VALUE VALUES (35, 36, 1, 'update', 'titles', '{"number":1,"do":[["set","titles",{"@":"StateMap","value":{}}]],"step":"titles"}');
INSERT INTO kept.history OVERRIDING SYSTEM VALUE VALUES (36, 37, 1, 'update', 'fetch', '{"number":1,"do":[["set","page","page 2"]],"step":"fetch"}');
INSERT INTO kept.history OVERRIDING SYSTEM VALUE VALUES (37, 37, 1, 'completed', 'fetch', '0');
INSERT INTO kept.history OVERRIDING SYSTEM VALUE VALUES (38, 38, 1, 'update', 'fetch', '{"number":1,"do":[["set","page","page 3"]],"step":"fetch"}');
INSERT INTO kept.history OVERRIDING SYSTEM VALUE VALUES (39, 38, 1, 'completed', 'fetch', '0');
INSERT INTO kept.history OVERRIDING SYSTEM VALUE VALUES (40, 39, 0, 'asked', 'ask', '["approve","May it be sent?","62b3dd5256d0b306b0cfb5570bb07661"]');
INSERT INTO kept.history OVERRIDING SYSTEM VALUE VALUES (41, 40, 1, 'update', 'turn', '{"number":1,"do":[["set","round",1]],"step":"turn"}');
INSERT INTO kept.history OVERRIDING SYSTEM VALUE VALUES (42, 40, 1, 'completed', 'turn', '0');
INSERT INTO kept.history OVERRIDING SYSTEM VALUE VALUES (43, 41, 0, 'begun', 'Pages', '{"acts":null,"versions":null,"keyed":null,"take":null,"into":null,"shape":null,"errors_into":null,"reduces":true,"grows":false,"until":"all"}');
INSERT INTO kept.history OVERRIDING SYSTEM VALUE VALUES (44, 44, 1, 'update', 'fetch', '{"number":1,"do":[["set","page","page 7"]],"step":"fetch"}');
INSERT INTO kept.history OVERRIDING SYSTEM VALUE VALUES (45, 44, 1, 'completed', 'fetch', '0');
INSERT INTO kept.history OVERRIDING SYSTEM VALUE VALUES (46, 45, 0, 'begun', 'never', '{"acts":["left","right"],"versions":["left=1","right=1"],"keyed":null,"take":"m","into":"never","shape":"one","errors_into":null,"reduces":false,"grows":false,"until":"first(1)"}');
INSERT INTO kept.layout VALUES (4);
INSERT INTO kept.places OVERRIDING SYSTEM VALUE VALUES (1, 'titles', 0, 'page');
INSERT INTO kept.places OVERRIDING SYSTEM VALUE VALUES (2, 'listed', 0, 'fetch');
INSERT INTO kept.places OVERRIDING SYSTEM VALUE VALUES (3, 'listed', 0, 'both');
INSERT INTO kept.places OVERRIDING SYSTEM VALUE VALUES (4, 'odds', 0, 'odd');
INSERT INTO kept.places OVERRIDING SYSTEM VALUE VALUES (5, 'looks', 0, 'look');
INSERT INTO kept.places OVERRIDING SYSTEM VALUE VALUES (6, 'frontier', 0, 'visit');
INSERT INTO kept.places OVERRIDING SYSTEM VALUE VALUES (7, 'answer', 0, 'quick');
INSERT INTO kept.places OVERRIDING SYSTEM VALUE VALUES (8, 'answer', 0, 'slow');
INSERT INTO kept.places OVERRIDING SYSTEM VALUE VALUES (9, 'add/parts', 0, 'square');
INSERT INTO kept.places OVERRIDING SYSTEM VALUE VALUES (10, 'outer', 0, 'inner');
INSERT INTO kept.places OVERRIDING SYSTEM VALUE VALUES (11, 'inner', 0, 'page');
INSERT INTO kept.places OVERRIDING SYSTEM VALUE VALUES (12, 'node', 0, 'node');
INSERT INTO kept.places OVERRIDING SYSTEM VALUE VALUES (14, 'Pages', 0, 'visit');
INSERT INTO kept.places OVERRIDING SYSTEM VALUE VALUES (15, 'never', 0, 'left');
INSERT INTO kept.places OVERRIDING SYSTEM VALUE VALUES (16, 'never', 0, 'right');
INSERT INTO kept.roots VALUES (1, 'map', '3', 1796074285.879044, 1796074285.8997371, '{"ns":[1,2,3,4]}', NULL, '{}', NULL, NULL, 'ExceptionGroup: a child of fan-out ''titles'' failed: ConnectionError: parse 3, the first time', '[]');
INSERT INTO kept.roots VALUES (5, 'listed', '3', 1796074285.9153972, 1796074285.9353704, '{"ns":[1,2,3]}', NULL, '{}', NULL, NULL, 'ExceptionGroup: a child of fan-out ''listed'' failed: ConnectionError: parse 3, the first time', '[]');
INSERT INTO kept.roots VALUES (12, 'errors', '3', 1796074285.9528987, 1796074285.9730465, '{"ns":[1,2,3,4]}', NULL, '{}', NULL, NULL, 'ExceptionGroup: a child of fan-out ''looks'' failed: ConnectionError: look 2, the first time', '[]');
INSERT INTO kept.roots VALUES (19, 'frontier', '3', 1796074285.9967957, 1796074286.030877, '{"starts":[1],"sum":0}', NULL, '{}', NULL, NULL, 'ExceptionGroup: a child of fan-out ''frontier'' failed: ConnectionError: visit 4, the first time', '[]');
INSERT INTO kept.roots VALUES (24, 'race', '3', 1796074286.0719447, 1796074286.0920355, '{}', NULL, '{}', NULL, NULL, 'ConnectionError: judge, the first time', '[]');
INSERT INTO kept.roots VALUES (27, 'own', '3', 1796074286.11232, 1796074286.1221166, '{"ns":[1,2,3,4]}', NULL, '{}', NULL, NULL, 'ConnectionError: a part failed', '[]');
INSERT INTO kept.roots VALUES (31, 'nested', '3', 1796074286.1361547, 1796074286.2161312, '{"ns":[2,3],"names":["a","b"]}', NULL, '{}', NULL, NULL, 'ExceptionGroup: a child of fan-out ''outer'' failed: ConnectionError: parse 3, the first time', '[]');
INSERT INTO kept.roots VALUES (35, 'node', '3', 1796074286.2688174, 1796074286.3614957, '{"ns":[2,3]}', NULL, '{}', NULL, NULL, 'ExceptionGroup: a child of fan-out ''titles'' failed: ConnectionError: parse 3, the first time', '[]');
INSERT INTO kept.roots VALUES (39, 'asking', '3', 1796074286.4058506, 1796074286.4087975, '{}', NULL, '{}', NULL, NULL, NULL, '[]');
INSERT INTO kept.roots VALUES (40, 'loop', '3', 1796074286.4335465, 1796074286.4412808, '{"round":0}', NULL, '{}', NULL, NULL, 'ConnectionError: turn 1, the first time', '[]');
INSERT INTO kept.roots VALUES (41, 'class', '3', 1796074286.477345, 1796074286.498626, '{"ns":[3,4,5],"sum":0}', NULL, '{}', NULL, NULL, 'ExceptionGroup: a child of fan-out ''Pages'' failed: ConnectionError: visit 4, the first time', '[]');
INSERT INTO kept.roots VALUES (44, 'done', '3', 1796074286.5361197, 1796074286.542259, '{"n":7}', NULL, '{}', NULL, NULL, NULL, '[]');
INSERT INTO kept.roots VALUES (45, 'lost', '3', 1796074286.5694923, 1796074286.5792587, '{"n":5}', NULL, '{}', NULL, NULL, 'NobodyAccepted: fan-out ''never'': none of its 2 children was accepted: Rejected: 5 was not accepted; Rejected: 5 was not accepted', '[]');
INSERT INTO kept.runs OVERRIDING SYSTEM VALUE VALUES (19, 0, NULL, NULL, NULL, 0, NULL, NULL, NULL, NULL, NULL, 'frontier', 'failed', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO kept.runs OVERRIDING SYSTEM VALUE VALUES (2, 1, 0, 2, 0.0026123720017494634, 1, 1, 1, 0, 1, 0, '#1', 'succeeded', 'd379c5779fb7248f2f5487c5dac1a092', '1', '"PAGE 1"', NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO kept.runs OVERRIDING SYSTEM VALUE VALUES (3, 1, 1, 3, 0.001417822000803426, 1, 1, 1, 0, 1, 0, '#2', 'succeeded', '7c2aeb9841702e99b8d8204b92428bf5', '2', '"PAGE 2"', NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO kept.runs OVERRIDING SYSTEM VALUE VALUES (4, 1, 2, NULL, 0.005522997002117336, 1, NULL, 1, 0, 1, 0, '#3', 'failed', 'c89701ccee1a4f755e20c3a40f0bd860', '3', NULL, NULL, NULL, '{"@":"error","@type":"builtins:ConnectionError","text":"parse 3, the first time","args":["parse 3, the first time"],"notes":["shoal: in action ''parse'' of ''titles'', key 3, run 0239d8408426d7ef679a062e7b8a3f50"]}', NULL, NULL, NULL, NULL);
INSERT INTO kept.runs OVERRIDING SYSTEM VALUE VALUES (1, 0, NULL, NULL, NULL, 0, NULL, NULL, NULL, NULL, NULL, 'map', 'failed', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO kept.runs OVERRIDING SYSTEM VALUE VALUES (6, 5, 0, 2, 9.774499994819053e-05, 2, 2, 1, 0, 1, 0, '#0', 'succeeded', '1fce372ffd347d6099ba9765fbf42c83', '1', '{"page":"page 1"}', NULL, '{"number":1,"do":[["set","page","page 1"]],"step":"fetch"}', NULL, NULL, NULL, NULL, NULL);
INSERT INTO kept.runs OVERRIDING SYSTEM VALUE VALUES (7, 5, 1, 3, 0.001916140998218907, 3, 2, 1, 0, 1, 0, '#0', 'succeeded', '046eaa5bc46a2d620adcaafc4b3ba044', '1', '{"page":"page 1"}', NULL, '{"number":2,"do":[["set","title","PAGE 1"]],"step":"parse"}', NULL, NULL, NULL, NULL, NULL);
INSERT INTO kept.runs OVERRIDING SYSTEM VALUE VALUES (8, 5, 2, 4, 7.182600165833719e-05, 2, 2, 1, 0, 1, 0, '#1', 'succeeded', '2ad0fdab3dac00d166c85f32e7f212f1', '2', '{"page":"page 2"}', NULL, '{"number":1,"do":[["set","page","page 2"]],"step":"fetch"}', NULL, NULL, NULL, NULL, NULL);
INSERT INTO kept.runs OVERRIDING SYSTEM VALUE VALUES (9, 5, 3, 5, 0.005909100000280887, 3, 2, 1, 0, 1, 0, '#1', 'succeeded', '05a2c3a7bab52bb086e9e0ad16d33b79', '2', '{"page":"page 2"}', NULL, '{"number":2,"do":[["set","title","PAGE 2"]],"step":"parse"}', NULL, NULL, NULL, NULL, NULL);
INSERT INTO kept.runs OVERRIDING SYSTEM VALUE VALUES (10, 5, 4, 6, 8.734999937587418e-05, 2, 2, 1, 0, 1, 0, '#2', 'succeeded', 'b81d177187bc5c4106965dc6ad097352', '3', '{"page":"page 3"}', NULL, '{"number":1,"do":[["set","page","page 3"]],"step":"fetch"}', NULL, NULL, NULL, NULL, NULL);
INSERT INTO kept.runs OVERRIDING SYSTEM VALUE VALUES (11, 5, 5, NULL, 0.001372754999465542, 3, NULL, 1, 0, 1, 0, '#2', 'failed', 'ac3d96e841bbf2914451dd948ac1c40c', '3', NULL, NULL, NULL, '{"@":"error","@type":"builtins:ConnectionError","text":"parse 3, the first time","args":["parse 3, the first time"],"notes":["shoal: in action ''parse'' of ''listed'', key 2, run 4805127f7e773e017f0973e26cd96978"]}', NULL, NULL, NULL, NULL);
INSERT INTO kept.runs OVERRIDING SYSTEM VALUE VALUES (5, 0, NULL, NULL, NULL, 0, NULL, NULL, NULL, NULL, NULL, 'listed', 'failed', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO kept.runs OVERRIDING SYSTEM VALUE VALUES (13, 12, 0, 2, 0.00020569500338751823, 4, 3, 1, 0, 1, 0, '#1', 'succeeded', '8f8f2aab5a39d80dc98a18dfd4aec95d', '1', '1', NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO kept.runs OVERRIDING SYSTEM VALUE VALUES (14, 12, 1, 3, 0.0001224410007125698, 4, NULL, 1, 0, 1, 0, '#2', 'failed', '9887b78cbe4cbafaa96d0a18557efe70', '2', NULL, '{"number":3,"do":[["put","bad",2,{"@":"dataclass","@type":"shoal:ErrorInfo","type":"ValueError","message":"2 is even","traceback":"Traceback (most recent call last):\n  File \"/srv/app/shoal/_engine/fanout/workers.py\", line 302, in _execute\n    waited = await drive(self._scope.context.copy(), living, self._add_some)\n             ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^\n  File \"/srv/app/shoal/_concurrency/cancellation.py\", line 144, in drive\n    trap = run(step, argument)\n  File \"/srv/app/shoal/_engine/walk.py\", line 98, in walk\n    change = await _perform(run, act)\n             ^^^^^^^^^^^^^^^^^^^^^^^^\n  File \"/srv/app/shoal/_engine/call.py\", line 373, in _call\n    result = await cast(\"Any\", action.function(**kwargs))\n             ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^\n  File \"/srv/app/tests/kept/programs.py\", line 72, in odd\n    raise ValueError(f\"{n} is even\")\nValueError: 2 is even\nshoal: in action ''odd'' of ''odds'', key 2, run 658f9ef43d74f0aca349b4b85ba084f1\n"},1]],"step":"odds"}', NULL, '{"@":"error","@type":"builtins:ValueError","text":"2 is even","args":["2 is even"],"notes":["shoal: in action ''odd'' of ''odds'', key 2, run 658f9ef43d74f0aca349b4b85ba084f1"]}', NULL, NULL, NULL, NULL);
INSERT INTO kept.runs OVERRIDING SYSTEM VALUE VALUES (15, 12, 2, 4, 0.00015168499885476194, 4, 3, 1, 0, 1, 0, '#3', 'succeeded', '3f7bb79bef82f88ae629e5e723d95ce2', '3', '3', NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO kept.runs OVERRIDING SYSTEM VALUE VALUES (16, 12, 3, 5, 0.00014054799976292998, 4, NULL, 1, 0, 1, 0, '#4', 'failed', 'b07720adff570366168d1d6d42275f88', '4', NULL, '{"number":5,"do":[["put","bad",4,{"@":"dataclass","@type":"shoal:ErrorInfo","type":"ValueError","message":"4 is even","traceback":"Traceback (most recent call last):\n  File \"/srv/app/shoal/_engine/fanout/workers.py\", line 302, in _execute\n    waited = await drive(self._scope.context.copy(), living, self._add_some)\n             ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^\n  File \"/srv/app/shoal/_concurrency/cancellation.py\", line 144, in drive\n    trap = run(step, argument)\n  File \"/srv/app/shoal/_engine/walk.py\", line 98, in walk\n    change = await _perform(run, act)\n             ^^^^^^^^^^^^^^^^^^^^^^^^\n  File \"/srv/app/shoal/_engine/call.py\", line 373, in _call\n    result = await cast(\"Any\", action.function(**kwargs))\n             ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^\n  File \"/srv/app/tests/kept/programs.py\", line 72, in odd\n    raise ValueError(f\"{n} is even\")\nValueError: 4 is even\nshoal: in action ''odd'' of ''odds'', key 4, run 44d6f0d1b1bab9204085056d6b8251df\n"},3]],"step":"odds"}', NULL, '{"@":"error","@type":"builtins:ValueError","text":"4 is even","args":["4 is even"],"notes":["shoal: in action ''odd'' of ''odds'', key 4, run 44d6f0d1b1bab9204085056d6b8251df"]}', NULL, NULL, NULL, NULL);
INSERT INTO kept.runs OVERRIDING SYSTEM VALUE VALUES (17, 12, 0, 7, 0.00019400699966354296, 5, 4, 1, 0, 1, 0, '#1', 'succeeded', '4d2ea064bef8965a598e3c4c2a8cc55d', '1', '"2: ValueError, 4: ValueError"', NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO kept.runs OVERRIDING SYSTEM VALUE VALUES (18, 12, 1, NULL, 7.889699918450788e-05, 5, NULL, 1, 0, 1, 0, '#2', 'failed', '5aef02948dcaf34685f0e69a131a4cdb', '2', NULL, NULL, NULL, '{"@":"error","@type":"builtins:ConnectionError","text":"look 2, the first time","args":["look 2, the first time"],"notes":["shoal: in action ''look'' of ''looks'', key 2, run 5523a3567d8193e035c6854bc44abf24"]}', NULL, NULL, NULL, NULL);
INSERT INTO kept.runs OVERRIDING SYSTEM VALUE VALUES (12, 0, NULL, NULL, NULL, 0, NULL, NULL, NULL, NULL, NULL, 'errors', 'failed', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO kept.runs OVERRIDING SYSTEM VALUE VALUES (20, 19, 0, 1, 9.21159989957232e-05, 6, 5, 1, 0, 1, 0, '#1', 'succeeded', '3e89332a29ecfedc6f911502c1b8e086', '1', '1', '{"number":1,"do":[["add","sum",1]],"step":"frontier","found":[2,3],"at":1}', NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO kept.runs OVERRIDING SYSTEM VALUE VALUES (21, 19, 1, 2, 0.00010639799802447669, 6, 5, 1, 0, 1, 0, '#2', 'succeeded', 'cd0a12076b5d0728bf284bbf738a9fec', '2', '2', '{"number":2,"do":[["add","sum",2]],"step":"frontier","found":[4,5],"at":3}', NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO kept.runs OVERRIDING SYSTEM VALUE VALUES (22, 19, 2, 3, 0.00010385399946244434, 6, 5, 1, 0, 1, 0, '#3', 'succeeded', '714a0ec60f74af596b809794cb9318c9', '3', '3', '{"number":3,"do":[["add","sum",3]],"step":"frontier","found":[6,7],"at":5}', NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO kept.runs OVERRIDING SYSTEM VALUE VALUES (23, 19, 3, NULL, 8.384499960811809e-05, 6, NULL, 1, 0, 1, 0, '#4', 'failed', 'd0dc73f09543cba602ed28c9ef722972', '4', NULL, NULL, NULL, '{"@":"error","@type":"builtins:ConnectionError","text":"visit 4, the first time","args":["visit 4, the first time"],"notes":["shoal: in action ''visit'' of ''frontier'', key 4, run b52b4b7faa6e17b0ad0569ddde0d2bb8"]}', NULL, NULL, NULL, NULL);
INSERT INTO kept.runs OVERRIDING SYSTEM VALUE VALUES (25, 24, 1, 1, 8.525699740857817e-05, 7, 6, 1, 0, 1, 0, '', 'succeeded', 'bbb80fec43b1f5dcefef101e2be46742', 'null', '"quick"', '{"number":1,"do":[["set","answer","quick"]],"step":"answer"}', NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO kept.runs OVERRIDING SYSTEM VALUE VALUES (26, 24, 0, NULL, 0.01013935100127128, 8, NULL, 1, 0, 1, 0, '', 'cancelled', '638aa63a9457ce98ea8ec6ffeb736e0a', 'null', NULL, NULL, NULL, NULL, '''quick'' decided fan-out ''answer''', 'quick', '', NULL);
INSERT INTO kept.runs OVERRIDING SYSTEM VALUE VALUES (24, 0, NULL, NULL, NULL, 0, NULL, NULL, NULL, NULL, NULL, 'race', 'failed', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO kept.runs OVERRIDING SYSTEM VALUE VALUES (28, 27, 0, NULL, 0.00010525600009714253, 9, 7, 1, 0, 1, 0, '#1', 'succeeded', '90ed2f4756728f977f9e0f74da59cc57', '1', '1', NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO kept.runs OVERRIDING SYSTEM VALUE VALUES (29, 27, 1, NULL, 0.00010177099829888903, 9, 7, 1, 0, 1, 0, '#2', 'succeeded', 'dc1182d2c1bec36ba9ace90bc91f4e53', '2', '4', NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO kept.runs OVERRIDING SYSTEM VALUE VALUES (30, 27, 2, NULL, 8.632800017949194e-05, 9, NULL, 1, 0, 1, 0, '#3', 'failed', '2d132bd2552cdf06282d131da72a6dd1', '3', NULL, NULL, NULL, '{"@":"error","@type":"builtins:ConnectionError","text":"square 3, the first time","args":["square 3, the first time"],"notes":["shoal: in action ''square'' of ''add/parts'', key 3, run b994043498ecaedbe6796eb3e2e5057a"]}', NULL, NULL, NULL, NULL);
INSERT INTO kept.runs OVERRIDING SYSTEM VALUE VALUES (27, 0, NULL, NULL, NULL, 0, NULL, NULL, NULL, NULL, NULL, 'own', 'failed', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO kept.runs OVERRIDING SYSTEM VALUE VALUES (33, 32, 0, 2, 0.007326841998292366, 11, 8, 1, 0, 1, 0, '#2', 'succeeded', '7c2aeb9841702e99b8d8204b92428bf5', '2', '"PAGE 2"', NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO kept.runs OVERRIDING SYSTEM VALUE VALUES (34, 32, 1, NULL, 0.021934184998826822, 11, NULL, 1, 0, 1, 0, '#3', 'failed', 'c89701ccee1a4f755e20c3a40f0bd860', '3', NULL, NULL, NULL, '{"@":"error","@type":"builtins:ConnectionError","text":"parse 3, the first time","args":["parse 3, the first time"],"notes":["shoal: in action ''parse'' of ''inner'', key 3, run 03fe2405cb2c1f93b6b991fa719210ad"]}', NULL, NULL, NULL, NULL);
INSERT INTO kept.runs OVERRIDING SYSTEM VALUE VALUES (32, 31, 0, NULL, 0.05802088899872615, 10, NULL, 1, 0, 1, 0, 'a', 'failed', '9951cd165c673a7286b9d74e74440675', '"a"', NULL, NULL, NULL, '{"@":"error","@type":"builtins:ExceptionGroup","text":"a child of fan-out ''inner'' failed (1 sub-exception)","args":["a child of fan-out ''inner'' failed",[{"@":"error","@type":"builtins:ConnectionError","text":"parse 3, the first time","args":["parse 3, the first time"],"notes":["shoal: in action ''parse'' of ''inner'', key 3, run 03fe2405cb2c1f93b6b991fa719210ad"]}]],"notes":["shoal: in action ''inner'' of ''outer'', key ''a'', run c359a81100ff7a25e432bfeecf3eaaa1"]}', NULL, NULL, NULL, NULL);
INSERT INTO kept.runs OVERRIDING SYSTEM VALUE VALUES (31, 0, NULL, NULL, NULL, 0, NULL, NULL, NULL, NULL, NULL, 'nested', 'failed', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO kept.runs OVERRIDING SYSTEM VALUE VALUES (37, 36, 0, 2, 0.011928642001294065, 1, 1, 1, 0, 1, 0, '#2', 'succeeded', '7c2aeb9841702e99b8d8204b92428bf5', '2', '"PAGE 2"', NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO kept.runs OVERRIDING SYSTEM VALUE VALUES (38, 36, 1, NULL, 0.013944356000138214, 1, NULL, 1, 0, 1, 0, '#3', 'failed', 'c89701ccee1a4f755e20c3a40f0bd860', '3', NULL, NULL, NULL, '{"@":"error","@type":"builtins:ConnectionError","text":"parse 3, the first time","args":["parse 3, the first time"],"notes":["shoal: in action ''parse'' of ''titles'', key 3, run 0581c1c22961eb6553f4b6e3757fa6ec"]}', NULL, NULL, NULL, NULL);
INSERT INTO kept.runs OVERRIDING SYSTEM VALUE VALUES (36, 35, 0, NULL, 0.0543877580021217, 12, NULL, 1, 0, 1, 0, '', 'failed', '1fb978067919b2ff4fdc0413b554fecc', 'null', NULL, NULL, NULL, '{"@":"error","@type":"builtins:ExceptionGroup","text":"a child of fan-out ''titles'' failed (1 sub-exception)","args":["a child of fan-out ''titles'' failed",[{"@":"error","@type":"builtins:ConnectionError","text":"parse 3, the first time","args":["parse 3, the first time"],"notes":["shoal: in action ''parse'' of ''titles'', key 3, run 0581c1c22961eb6553f4b6e3757fa6ec"]}]],"notes":["shoal: in action ''titles'' of ''node'', key '''', run d6ce7345aaa0d0aa349f67c92547d5b5"]}', NULL, NULL, NULL, NULL);
INSERT INTO kept.runs OVERRIDING SYSTEM VALUE VALUES (35, 0, NULL, NULL, NULL, 0, NULL, NULL, NULL, NULL, NULL, 'node', 'failed', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO kept.runs OVERRIDING SYSTEM VALUE VALUES (39, 0, NULL, NULL, NULL, 0, NULL, NULL, NULL, NULL, NULL, 'asking', 'halted', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO kept.runs OVERRIDING SYSTEM VALUE VALUES (40, 0, NULL, NULL, NULL, 0, NULL, NULL, NULL, NULL, NULL, 'loop', 'failed', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO kept.runs OVERRIDING SYSTEM VALUE VALUES (42, 41, 0, 1, 0.00011985800301772542, 14, 5, 1, 0, 1, 0, '#3', 'succeeded', '714a0ec60f74af596b809794cb9318c9', '{"n":3}', '3', '{"number":1,"do":[["add","sum",3]],"step":"Pages"}', NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO kept.runs OVERRIDING SYSTEM VALUE VALUES (43, 41, 1, NULL, 0.00015792400154168718, 14, NULL, 1, 0, 1, 0, '#4', 'failed', 'd0dc73f09543cba602ed28c9ef722972', '{"n":4}', NULL, NULL, NULL, '{"@":"error","@type":"builtins:ConnectionError","text":"visit 4, the first time","args":["visit 4, the first time"],"notes":["shoal: in action ''visit'' of ''Pages'', key 4, run 771f69f5be2d744693ede17b009ba653"]}', NULL, NULL, NULL, NULL);
INSERT INTO kept.runs OVERRIDING SYSTEM VALUE VALUES (41, 0, NULL, NULL, NULL, 0, NULL, NULL, NULL, NULL, NULL, 'class', 'failed', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO kept.runs OVERRIDING SYSTEM VALUE VALUES (44, 0, NULL, NULL, NULL, 0, NULL, NULL, NULL, NULL, NULL, 'done', 'succeeded', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO kept.runs OVERRIDING SYSTEM VALUE VALUES (46, 45, 0, NULL, 0.00017901500177686103, 15, 11, 1, 0, 0, 0, '', 'succeeded', 'c8621c65e6d5ef1adf3080dde60716f1', 'null', '5', NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO kept.runs OVERRIDING SYSTEM VALUE VALUES (47, 45, 1, NULL, 9.502100147074088e-05, 16, 12, 1, 0, 0, 0, '', 'succeeded', 'ee139d3aa09e69ada7555032bd65bb36', 'null', '5', NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO kept.runs OVERRIDING SYSTEM VALUE VALUES (45, 0, NULL, NULL, NULL, 0, NULL, NULL, NULL, NULL, NULL, 'lost', 'failed', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
SELECT pg_catalog.setval('kept.forms_id_seq', 12, true);
SELECT pg_catalog.setval('kept.history_id_seq', 46, true);
SELECT pg_catalog.setval('kept.places_id_seq', 16, true);
SELECT pg_catalog.setval('kept.runs_id_seq', 47, true);
ALTER TABLE ONLY kept.claims
    ADD CONSTRAINT claims_pkey PRIMARY KEY (run_id);
ALTER TABLE ONLY kept.forms
    ADD CONSTRAINT forms_form_key UNIQUE (form);
ALTER TABLE ONLY kept.forms
    ADD CONSTRAINT forms_pkey PRIMARY KEY (id);
ALTER TABLE ONLY kept.history
    ADD CONSTRAINT history_pkey PRIMARY KEY (id);
ALTER TABLE ONLY kept.places
    ADD CONSTRAINT places_pkey PRIMARY KEY (id);
ALTER TABLE ONLY kept.places
    ADD CONSTRAINT places_step_visit_act_key UNIQUE (step, visit, act);
ALTER TABLE ONLY kept.results
    ADD CONSTRAINT results_pkey PRIMARY KEY (key);
ALTER TABLE ONLY kept.roots
    ADD CONSTRAINT roots_pkey PRIMARY KEY (run);
ALTER TABLE ONLY kept.runs
    ADD CONSTRAINT runs_pkey PRIMARY KEY (id);
CREATE INDEX history_by_number ON kept.history USING btree (run, number);
CREATE INDEX results_by_end ON kept.results USING btree (ends_at) WHERE (ends_at IS NOT NULL);
CREATE UNIQUE INDEX runs_by_key ON kept.runs USING btree (parent, place, key);
CREATE INDEX runs_by_status ON kept.runs USING btree (parent, status, applied NULLS FIRST);
