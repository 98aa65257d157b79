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
    long_key text,
    ended_at double precision,
    failed_step text
);
CREATE TABLE kept.saves (
    run bigint NOT NULL,
    number bigint NOT NULL,
    at double precision
);
CREATE VIEW kept.child_runs AS
 SELECT ended.id,
    ended.parent,
    ended.step,
    ended.visit,
    ended.act,
    ended.key,
    ended."position",
    ended.status,
    ended.element,
    ended.value,
    ended.error_type,
    ended.error_text,
    ended.error,
    ended.reason,
    ended.applied,
    ended.used,
    ended.attempts,
    ended.elapsed,
    ended.abandoned,
    ended.failed_step,
    ended.ended_at,
    (ended.ended_at - (ended.elapsed * '00:00:01'::interval)) AS began_at
   FROM ( SELECT runs.id,
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
            runs.abandoned,
            runs.failed_step,
            to_timestamp(COALESCE(runs.ended_at, ( SELECT saves.at
                   FROM kept.saves
                  WHERE ((saves.run = runs.parent) AND (saves.number >= runs.applied))
                  ORDER BY saves.number
                 LIMIT 1))) AS ended_at
           FROM (kept.runs
             JOIN kept.places ON ((places.id = runs.place)))
          WHERE (runs."position" IS NOT NULL)) ended;
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
CREATE TABLE kept.commands (
    id bigint NOT NULL,
    run bigint NOT NULL,
    epoch bigint NOT NULL,
    kind text NOT NULL COLLATE pg_catalog."C",
    arguments json NOT NULL
);
ALTER TABLE kept.commands ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME kept.commands_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);
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
    data json NOT NULL,
    at double precision
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
CREATE TABLE kept.reports (
    run bigint NOT NULL,
    at double precision NOT NULL,
    text text NOT NULL
)
WITH (fillfactor='50');
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
    secret text DEFAULT '[]'::text NOT NULL,
    spawned_by json,
    spawner text COLLATE pg_catalog."C"
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
    roots.error,
    roots.spawned_by
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
INSERT INTO kept.claims VALUES ('listed', 1, 12, NULL, 'host', 'boot', 1, '1', 15, 1796095304.356955);
INSERT INTO kept.claims VALUES ('map', 1, 9, NULL, 'host', 'boot', 1, '1', 15, 1796095304.253278);
INSERT INTO kept.claims VALUES ('errors', 1, 8, NULL, 'host', 'boot', 1, '1', 15, 1796095304.466367);
INSERT INTO kept.claims VALUES ('frontier', 1, 6, NULL, 'host', 'boot', 1, '1', 15, 1796095304.566473);
INSERT INTO kept.claims VALUES ('loop', 1, 3, NULL, 'host', 'boot', 1, '1', 15, 1796095305.023506);
INSERT INTO kept.claims VALUES ('nested', 1, 9, NULL, 'host', 'boot', 1, '1', 15, 1796095304.794378);
INSERT INTO kept.claims VALUES ('race', 1, 5, NULL, 'host', 'boot', 1, '1', 15, 1796095304.64622);
INSERT INTO kept.claims VALUES ('class', 1, 4, NULL, 'host', 'boot', 1, '1', 15, 1796095305.06883);
INSERT INTO kept.claims VALUES ('own', 1, 5, NULL, 'host', 'boot', 1, '1', 15, 1796095304.716851);
INSERT INTO kept.claims VALUES ('node', 1, 8, NULL, 'host', 'boot', 1, '1', 15, 1796095304.900849);
INSERT INTO kept.claims VALUES ('done', 1, 2, NULL, 'host', 'boot', 1, '1', 15, 1796095305.145838);
INSERT INTO kept.claims VALUES ('asking', 1, 3, NULL, 'host', 'boot', 1, '1', 15, 1796095304.987096);
INSERT INTO kept.claims VALUES ('lost', 1, 3, NULL, 'host', 'boot', 1, '1', 15, 1796095305.198001);
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
INSERT INTO kept.history OVERRIDING SYSTEM VALUE VALUES (1, 1, 0, 'begun', 'titles', '{"acts":["page"],"versions":["fetch=1,parse=1"],"keyed":true,"take":"title","into":"titles","shape":"by key","errors_into":null,"reduces":false,"grows":false,"until":"all"}', 1796095304.271162);
INSERT INTO kept.history OVERRIDING SYSTEM VALUE VALUES (2, 1, 1, 'update', 'titles', '{"number":1,"do":[["set","titles",{"@":"StateMap","value":{}}]],"step":"titles"}', 1796095304.271162);
INSERT INTO kept.history OVERRIDING SYSTEM VALUE VALUES (3, 2, 1, 'update', 'fetch', '{"number":1,"do":[["set","page","page 1"]],"step":"fetch"}', 1796095304.2777545);
INSERT INTO kept.history OVERRIDING SYSTEM VALUE VALUES (4, 2, 1, 'completed', 'fetch', '0', 1796095304.2777545);
INSERT INTO kept.history OVERRIDING SYSTEM VALUE VALUES (5, 3, 1, 'update', 'fetch', '{"number":1,"do":[["set","page","page 2"]],"step":"fetch"}', 1796095304.293108);
INSERT INTO kept.history OVERRIDING SYSTEM VALUE VALUES (6, 3, 1, 'completed', 'fetch', '0', 1796095304.293108);
INSERT INTO kept.history OVERRIDING SYSTEM VALUE VALUES (7, 4, 1, 'update', 'fetch', '{"number":1,"do":[["set","page","page 3"]],"step":"fetch"}', 1796095304.3041525);
INSERT INTO kept.history OVERRIDING SYSTEM VALUE VALUES (8, 4, 1, 'completed', 'fetch', '0', 1796095304.3041525);
INSERT INTO kept.history OVERRIDING SYSTEM VALUE VALUES (9, 5, 0, 'begun', 'listed', '{"acts":["fetch","both"],"versions":["fetch=1","fetch=1,parse=1"],"keyed":false,"take":["page"],"into":"out","shape":"by position and act","errors_into":null,"reduces":false,"grows":false,"until":"all"}', 1796095304.3626633);
INSERT INTO kept.history OVERRIDING SYSTEM VALUE VALUES (10, 5, 1, 'update', 'listed', '{"number":1,"do":[["set","out",{"@":"PositionedList","value":[],"at":[]}]],"step":"listed"}', 1796095304.3626633);
INSERT INTO kept.history OVERRIDING SYSTEM VALUE VALUES (11, 7, 1, 'update', 'fetch', '{"number":1,"do":[["set","page","page 1"]],"step":"fetch"}', 1796095304.3834107);
INSERT INTO kept.history OVERRIDING SYSTEM VALUE VALUES (12, 7, 1, 'completed', 'fetch', '0', 1796095304.3834107);
INSERT INTO kept.history OVERRIDING SYSTEM VALUE VALUES (13, 9, 1, 'update', 'fetch', '{"number":1,"do":[["set","page","page 2"]],"step":"fetch"}', 1796095304.405842);
INSERT INTO kept.history OVERRIDING SYSTEM VALUE VALUES (14, 9, 1, 'completed', 'fetch', '0', 1796095304.405842);
INSERT INTO kept.history OVERRIDING SYSTEM VALUE VALUES (15, 11, 1, 'update', 'fetch', '{"number":1,"do":[["set","page","page 3"]],"step":"fetch"}', 1796095304.426614);
INSERT INTO kept.history OVERRIDING SYSTEM VALUE VALUES (16, 11, 1, 'completed', 'fetch', '0', 1796095304.426614);
INSERT INTO kept.history OVERRIDING SYSTEM VALUE VALUES (17, 12, 0, 'begun', 'odds', '{"acts":["odd"],"versions":["odd=1"],"keyed":true,"take":"m","into":"odds","shape":"by key","errors_into":"bad","reduces":false,"grows":false,"until":"all"}', 1796095304.4780662);
INSERT INTO kept.history OVERRIDING SYSTEM VALUE VALUES (18, 12, 1, 'update', 'odds', '{"number":1,"do":[["set","odds",{"@":"StateMap","value":{}}],["set","bad",{"@":"StateMap","value":{}}]],"step":"odds"}', 1796095304.4780662);
INSERT INTO kept.history OVERRIDING SYSTEM VALUE VALUES (19, 12, 5, 'completed', 'odds', '5', 1796095304.5013506);
INSERT INTO kept.history OVERRIDING SYSTEM VALUE VALUES (20, 12, 5, 'begun', 'looks', '{"acts":["look"],"versions":["look=1"],"keyed":true,"take":"seen","into":"looks","shape":"by key","errors_into":null,"reduces":false,"grows":false,"until":"all"}', 1796095304.5134573);
INSERT INTO kept.history OVERRIDING SYSTEM VALUE VALUES (21, 12, 6, 'update', 'looks', '{"number":6,"do":[["set","looks",{"@":"StateMap","value":{}}]],"step":"looks"}', 1796095304.5134573);
INSERT INTO kept.history OVERRIDING SYSTEM VALUE VALUES (22, 19, 0, 'begun', 'frontier', '{"acts":["visit"],"versions":["visit=1"],"keyed":true,"take":null,"into":null,"shape":null,"errors_into":null,"reduces":true,"grows":true,"until":"all"}', 1796095304.5785074);
INSERT INTO kept.history OVERRIDING SYSTEM VALUE VALUES (23, 24, 0, 'begun', 'answer', '{"acts":["slow","quick"],"versions":["slow=1","quick=1"],"keyed":null,"take":null,"into":"answer","shape":"one","errors_into":null,"reduces":false,"grows":false,"until":"first(1)"}', 1796095304.6592007);
INSERT INTO kept.history OVERRIDING SYSTEM VALUE VALUES (24, 24, 1, 'decision', 'answer', '[["quick",""],[["quick",""]],"''quick'' decided fan-out ''answer''"]', 1796095304.6592007);
INSERT INTO kept.history OVERRIDING SYSTEM VALUE VALUES (25, 24, 1, 'completed', 'answer', '1', 1796095304.6719134);
INSERT INTO kept.history OVERRIDING SYSTEM VALUE VALUES (26, 31, 0, 'begun', 'outer', '{"acts":["inner"],"versions":["inner=page=fetch=1,parse=1"],"keyed":true,"take":"inner","into":"outer","shape":"by key","errors_into":null,"reduces":false,"grows":false,"until":"all"}', 1796095304.8106196);
INSERT INTO kept.history OVERRIDING SYSTEM VALUE VALUES (27, 31, 1, 'update', 'outer', '{"number":1,"do":[["set","outer",{"@":"StateMap","value":{}}]],"step":"outer"}', 1796095304.8106196);
INSERT INTO kept.history OVERRIDING SYSTEM VALUE VALUES (28, 32, 0, 'begun', 'inner', '{"acts":["page"],"versions":["fetch=1,parse=1"],"keyed":true,"take":"title","into":"inner","shape":"by key","errors_into":null,"reduces":false,"grows":false,"until":"all"}', 1796095304.8172874);
INSERT INTO kept.history OVERRIDING SYSTEM VALUE VALUES (29, 32, 1, 'update', 'inner', '{"number":1,"do":[["set","inner",{"@":"StateMap","value":{}}]],"step":"inner"}', 1796095304.8172874);
INSERT INTO kept.history OVERRIDING SYSTEM VALUE VALUES (30, 33, 1, 'update', 'fetch', '{"number":1,"do":[["set","page","page 2"]],"step":"fetch"}', 1796095304.8232598);
INSERT INTO kept.history OVERRIDING SYSTEM VALUE VALUES (31, 33, 1, 'completed', 'fetch', '0', 1796095304.8232598);
INSERT INTO kept.history OVERRIDING SYSTEM VALUE VALUES (32, 34, 1, 'update', 'fetch', '{"number":1,"do":[["set","page","page 3"]],"step":"fetch"}', 1796095304.8374505);
INSERT INTO kept.history OVERRIDING SYSTEM VALUE VALUES (33, 34, 1, 'completed', 'fetch', '0', 1796095304.8374505);
INSERT INTO kept.history OVERRIDING SYSTEM VALUE VALUES (34, 36, 0, 'begun', 'titles', '{"acts":["page"],"versions":["fetch=1,parse=1"],"keyed":true,"take":"title","into":"titles","shape":"by key","errors_into":null,"reduces":false,"grows":false,"until":"all"}', 1796095304.914273);
INSERT INTO kept.history OVERRIDING SYSTEM VALUE VALUES (35, 36, 1, 'update', 'titles', '{"number":1,"do":[["set","titles",{"@":"StateMap","value":{}}]],"step":"titles"}', 1796095304.914273);
INSERT INTO kept.history OVERRIDING SYSTEM VALUE VALUES (36, 37, 1, 'update', 'fetch', '{"number":1,"do":[["set","page","page 2"]],"step":"fetch"}', 1796095304.930092);
INSERT INTO kept.history OVERRIDING SYSTEM VALUE VALUES (37, 37, 1, 'completed', 'fetch', '0', 1796095304.930092);
INSERT INTO kept.history OVERRIDING SYSTEM VALUE VALUES (38, 38, 1, 'update', 'fetch', '{"number":1,"do":[["set","page","page 3"]],"step":"fetch"}', 1796095304.9426959);
INSERT INTO kept.history OVERRIDING SYSTEM VALUE VALUES (39, 38, 1, 'completed', 'fetch', '0', 1796095304.9426959);
INSERT INTO kept.history OVERRIDING SYSTEM VALUE VALUES (40, 39, 0, 'asked', 'ask', '["approve","May it be sent?","62b3dd5256d0b306b0cfb5570bb07661"]', 1796095304.9979284);
INSERT INTO kept.history OVERRIDING SYSTEM VALUE VALUES (41, 40, 1, 'update', 'turn', '{"number":1,"do":[["set","round",1]],"step":"turn"}', 1796095305.0330534);
INSERT INTO kept.history OVERRIDING SYSTEM VALUE VALUES (42, 40, 1, 'completed', 'turn', '0', 1796095305.0330534);
INSERT INTO kept.history OVERRIDING SYSTEM VALUE VALUES (43, 41, 0, 'begun', 'Pages', '{"acts":null,"versions":null,"keyed":null,"take":null,"into":null,"shape":null,"errors_into":null,"reduces":true,"grows":false,"until":"all"}', 1796095305.077582);
INSERT INTO kept.history OVERRIDING SYSTEM VALUE VALUES (44, 44, 1, 'update', 'fetch', '{"number":1,"do":[["set","page","page 7"]],"step":"fetch"}', 1796095305.1568272);
INSERT INTO kept.history OVERRIDING SYSTEM VALUE VALUES (45, 44, 1, 'completed', 'fetch', '0', 1796095305.1568272);
INSERT INTO kept.history OVERRIDING SYSTEM VALUE VALUES (46, 45, 0, 'begun', 'never', '{"acts":["left","right"],"versions":["left=1","right=1"],"keyed":null,"take":"m","into":"never","shape":"one","errors_into":null,"reduces":false,"grows":false,"until":"first(1)"}', 1796095305.2076871);
INSERT INTO kept.layout VALUES (5);
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
INSERT INTO kept.reports VALUES (1, 1796095304.321042, '{"run_id":"map","seconds":0.20238521999999648,"samples":4,"every":0.047,"spent":{"store":0.19653726999968057,"reducer":3.870599903166294e-05,"loop":0.005809244001284242},"recent":{"store":0.1899255931097147,"reducer":3.836068767508122e-05,"loop":0.0057455942543054375},"slowest":[{"path":["map","map",["titles",0,"page",3]],"seconds":0.009142271999735385,"began":0.18707513499975903,"status":"failed"}],"limits":[{"owner":"titles","part":-1,"limits":"in flight","in_use":0,"slots":1,"waiting":0,"full":0.05283994899946265}],"peak":1,"is_over":true}');
INSERT INTO kept.reports VALUES (5, 1796095304.439458, '{"run_id":"listed","seconds":0.10815201100194827,"samples":2,"every":0.047,"spent":{"reducer":0.00024325199774466455,"store":0.1079087590042036},"recent":{"reducer":0.00023943934476103803,"store":0.10598631242841867},"limits":[{"owner":"listed","part":-1,"limits":"in flight","in_use":0,"slots":1,"waiting":0,"full":0.09560966899880441}],"peak":1,"is_over":true}');
INSERT INTO kept.reports VALUES (12, 1796095304.533405, '{"run_id":"errors","seconds":0.08433089000027394,"samples":1,"every":0.047,"spent":{"reducer":0.005676615008269437,"store":0.0786542749920045},"recent":{"reducer":0.0055637339674685015,"store":0.07759290147222611},"peak":1,"is_over":true}');
INSERT INTO kept.reports VALUES (19, 1796095304.618317, '{"run_id":"frontier","seconds":0.07215603300574003,"samples":1,"every":0.047,"spent":{"reducer":0.00031956400925992057,"store":0.07183646899648011},"recent":{"reducer":0.0003156817834798466,"store":0.07097951777512504},"limits":[{"owner":"frontier","part":-1,"limits":"in flight","in_use":0,"slots":1,"waiting":0,"full":0.04799271400406724}],"peak":1,"is_over":true}');
INSERT INTO kept.reports VALUES (24, 1796095304.693093, '{"run_id":"race","seconds":0.05962290400202619,"samples":1,"every":0.047,"spent":{"reducer":4.502600495470688e-05,"store":0.05957787799707148},"recent":{"reducer":4.448950361380944e-05,"store":0.05898983834728763},"peak":1,"is_over":true}');
INSERT INTO kept.reports VALUES (27, 1796095304.75302, '{"run_id":"own","seconds":0.04784661599842366,"samples":1,"every":0.047,"spent":{"store":0.04784661599842366},"recent":{"store":0.047467086588798044},"peak":1,"is_over":true}');
INSERT INTO kept.reports VALUES (31, 1796095304.852151, '{"run_id":"nested","seconds":0.09357245900173439,"samples":1,"every":0.047,"spent":{"store":0.05099804799829144,"other":0.04257441100344295},"recent":{"store":0.04985447457508181,"other":0.04227373826794867},"is_over":true}');
INSERT INTO kept.reports VALUES (35, 1796095304.955413, '{"run_id":"node","seconds":0.0933469649971812,"samples":1,"every":0.047,"spent":{"store":0.05175965699891094,"other":0.04158730799827026},"recent":{"store":0.0506092507609403,"other":0.04130038464953867},"is_over":true}');
INSERT INTO kept.reports VALUES (41, 1796095305.104966, '{"run_id":"class","seconds":0.057811088001471944,"samples":1,"every":0.047,"spent":{"reducer":7.336899579968303e-05,"loop":0.00509289100591559,"store":0.05264482799975667},"recent":{"reducer":7.25980497484103e-05,"loop":0.005039375973199414,"store":0.05214565448594704},"limits":[{"owner":"Pages","part":-1,"limits":"in flight","in_use":0,"slots":1,"waiting":0,"full":0.052166260000376496}],"peak":1,"is_over":true}');
INSERT INTO kept.reports VALUES (44, 1796095305.177356, '{"run_id":"done","seconds":0.049646523999399506,"samples":1,"every":0.047,"spent":{"store":0.049646523999399506},"recent":{"store":0.049237984498121674},"peak":1,"is_over":true}');
INSERT INTO kept.roots VALUES (1, 'map', '3', 1796095304.269838, 1796095304.3189464, '{"ns":[1,2,3,4]}', NULL, '{}', NULL, NULL, 'ExceptionGroup: a child of fan-out ''titles'' failed: ConnectionError: parse 3, the first time', '[]', NULL, NULL);
INSERT INTO kept.roots VALUES (5, 'listed', '3', 1796095304.3615375, 1796095304.4383795, '{"ns":[1,2,3]}', NULL, '{}', NULL, NULL, 'ExceptionGroup: a child of fan-out ''listed'' failed: ConnectionError: parse 3, the first time', '[]', NULL, NULL);
INSERT INTO kept.roots VALUES (12, 'errors', '3', 1796095304.4768414, 1796095304.5293975, '{"ns":[1,2,3,4]}', NULL, '{}', NULL, NULL, 'ExceptionGroup: a child of fan-out ''looks'' failed: ConnectionError: look 2, the first time', '[]', NULL, NULL);
INSERT INTO kept.roots VALUES (19, 'frontier', '3', 1796095304.5768545, 1796095304.6168492, '{"starts":[1],"sum":0}', NULL, '{}', NULL, NULL, 'ExceptionGroup: a child of fan-out ''frontier'' failed: ConnectionError: visit 4, the first time', '[]', NULL, NULL);
INSERT INTO kept.roots VALUES (24, 'race', '3', 1796095304.657697, 1796095304.6832976, '{}', NULL, '{}', NULL, NULL, 'ConnectionError: judge, the first time', '[]', NULL, NULL);
INSERT INTO kept.roots VALUES (27, 'own', '3', 1796095304.728843, 1796095304.7461877, '{"ns":[1,2,3,4]}', NULL, '{}', NULL, NULL, 'ConnectionError: a part failed', '[]', NULL, NULL);
INSERT INTO kept.roots VALUES (31, 'nested', '3', 1796095304.808824, 1796095304.851213, '{"ns":[2,3],"names":["a","b"]}', NULL, '{}', NULL, NULL, 'ExceptionGroup: a child of fan-out ''outer'' failed: ConnectionError: parse 3, the first time', '[]', NULL, NULL);
INSERT INTO kept.roots VALUES (35, 'node', '3', 1796095304.906231, 1796095304.9527624, '{"ns":[2,3]}', NULL, '{}', NULL, NULL, 'ExceptionGroup: a child of fan-out ''titles'' failed: ConnectionError: parse 3, the first time', '[]', NULL, NULL);
INSERT INTO kept.roots VALUES (39, 'asking', '3', 1796095304.9967916, 1796095304.999976, '{}', NULL, '{}', NULL, NULL, NULL, '[]', NULL, NULL);
INSERT INTO kept.roots VALUES (40, 'loop', '3', 1796095305.026039, 1796095305.03535, '{"round":0}', NULL, '{}', NULL, NULL, 'ConnectionError: turn 1, the first time', '[]', NULL, NULL);
INSERT INTO kept.roots VALUES (41, 'class', '3', 1796095305.0743878, 1796095305.1019468, '{"ns":[3,4,5],"sum":0}', NULL, '{}', NULL, NULL, 'ExceptionGroup: a child of fan-out ''Pages'' failed: ConnectionError: visit 4, the first time', '[]', NULL, NULL);
INSERT INTO kept.roots VALUES (44, 'done', '3', 1796095305.1558666, 1796095305.1650536, '{"n":7}', NULL, '{}', NULL, NULL, NULL, '[]', NULL, NULL);
INSERT INTO kept.roots VALUES (45, 'lost', '3', 1796095305.2063804, 1796095305.222744, '{"n":5}', NULL, '{}', NULL, NULL, 'NobodyAccepted: fan-out ''never'': none of its 2 children was accepted: Rejected: 5 was not accepted; Rejected: 5 was not accepted', '[]', NULL, NULL);
INSERT INTO kept.runs OVERRIDING SYSTEM VALUE VALUES (12, 0, NULL, NULL, NULL, 0, NULL, NULL, NULL, NULL, NULL, 'errors', 'failed', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO kept.runs OVERRIDING SYSTEM VALUE VALUES (2, 1, 0, 2, 0.007525956003519241, 1, 1, 1, 0, 1, 0, '#1', 'succeeded', 'd379c5779fb7248f2f5487c5dac1a092', '1', '"PAGE 1"', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO kept.runs OVERRIDING SYSTEM VALUE VALUES (3, 1, 1, 3, 0.005426304000138771, 1, 1, 1, 0, 1, 0, '#2', 'succeeded', '7c2aeb9841702e99b8d8204b92428bf5', '2', '"PAGE 2"', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO kept.runs OVERRIDING SYSTEM VALUE VALUES (4, 1, 2, NULL, 0.009142271999735385, 1, NULL, 1, 0, 1, 0, '#3', 'failed', 'c89701ccee1a4f755e20c3a40f0bd860', '3', NULL, NULL, NULL, '{"@":"error","@type":"builtins:ConnectionError","text":"parse 3, the first time","args":["parse 3, the first time"],"notes":["shoal: in action ''parse'' of ''titles'', key 3, run 0239d8408426d7ef679a062e7b8a3f50"],"trace":["/srv/app/tests/kept/programs.py:65, in programs.<locals>.parse", "/srv/app/tests/kept/programs.py:52, in World.note"]}', NULL, NULL, NULL, NULL, 1796095304.3133464, 'parse');
INSERT INTO kept.runs OVERRIDING SYSTEM VALUE VALUES (1, 0, NULL, NULL, NULL, 0, NULL, NULL, NULL, NULL, NULL, 'map', 'failed', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO kept.runs OVERRIDING SYSTEM VALUE VALUES (6, 5, 0, 2, 0.00016900100308703259, 2, 2, 1, 0, 1, 0, '#0', 'succeeded', '1fce372ffd347d6099ba9765fbf42c83', '1', '{"page":"page 1"}', NULL, '{"number":1,"do":[["set","page","page 1"]],"step":"fetch"}', NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO kept.runs OVERRIDING SYSTEM VALUE VALUES (7, 5, 1, 3, 0.01311826599703636, 3, 2, 1, 0, 1, 0, '#0', 'succeeded', '046eaa5bc46a2d620adcaafc4b3ba044', '1', '{"page":"page 1"}', NULL, '{"number":2,"do":[["set","title","PAGE 1"]],"step":"parse"}', NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO kept.runs OVERRIDING SYSTEM VALUE VALUES (8, 5, 2, 4, 0.00012697800411842763, 2, 2, 1, 0, 1, 0, '#1', 'succeeded', '2ad0fdab3dac00d166c85f32e7f212f1', '2', '{"page":"page 2"}', NULL, '{"number":1,"do":[["set","page","page 2"]],"step":"fetch"}', NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO kept.runs OVERRIDING SYSTEM VALUE VALUES (9, 5, 3, 5, 0.008612257006461732, 3, 2, 1, 0, 1, 0, '#1', 'succeeded', '05a2c3a7bab52bb086e9e0ad16d33b79', '2', '{"page":"page 2"}', NULL, '{"number":2,"do":[["set","title","PAGE 2"]],"step":"parse"}', NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO kept.runs OVERRIDING SYSTEM VALUE VALUES (10, 5, 4, 6, 0.00012109000090276822, 2, 2, 1, 0, 1, 0, '#2', 'succeeded', 'b81d177187bc5c4106965dc6ad097352', '3', '{"page":"page 3"}', NULL, '{"number":1,"do":[["set","page","page 3"]],"step":"fetch"}', NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO kept.runs OVERRIDING SYSTEM VALUE VALUES (11, 5, 5, NULL, 0.0016932299986365251, 3, NULL, 1, 0, 1, 0, '#2', 'failed', 'ac3d96e841bbf2914451dd948ac1c40c', '3', NULL, NULL, NULL, '{"@":"error","@type":"builtins:ConnectionError","text":"parse 3, the first time","args":["parse 3, the first time"],"notes":["shoal: in action ''parse'' of ''listed'', key 2, run 4805127f7e773e017f0973e26cd96978"],"trace":["/srv/app/tests/kept/programs.py:65, in programs.<locals>.parse", "/srv/app/tests/kept/programs.py:52, in World.note"]}', NULL, NULL, NULL, NULL, 1796095304.42833, 'parse');
INSERT INTO kept.runs OVERRIDING SYSTEM VALUE VALUES (5, 0, NULL, NULL, NULL, 0, NULL, NULL, NULL, NULL, NULL, 'listed', 'failed', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO kept.runs OVERRIDING SYSTEM VALUE VALUES (19, 0, NULL, NULL, NULL, 0, NULL, NULL, NULL, NULL, NULL, 'frontier', 'failed', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO kept.runs OVERRIDING SYSTEM VALUE VALUES (13, 12, 0, 2, 0.00021781199757242575, 4, 3, 1, 0, 1, 0, '#1', 'succeeded', '8f8f2aab5a39d80dc98a18dfd4aec95d', '1', '1', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO kept.runs OVERRIDING SYSTEM VALUE VALUES (14, 12, 1, 3, 0.00012986200454179198, 4, NULL, 1, 0, 1, 0, '#2', 'failed', '9887b78cbe4cbafaa96d0a18557efe70', '2', NULL, '{"number":3,"do":[["put","bad",2,{"@":"dataclass","@type":"shoal:ErrorInfo","type":"ValueError","message":"2 is even","traceback":"Traceback (most recent call last):\n  File \"/srv/app/shoal/_engine/fanout/workers.py\", line 322, in _execute\n    waited = await drive(context.copy(), living, self._add_some)\n             ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^\n  File \"/srv/app/shoal/_concurrency/cancellation.py\", line 144, in drive\n    trap = run(step, argument)\n  File \"/srv/app/shoal/_engine/walk.py\", line 101, in walk\n    change = await _perform(run, act)\n             ^^^^^^^^^^^^^^^^^^^^^^^^\n  File \"/srv/app/shoal/_engine/call.py\", line 461, in _call\n    result = await cast(\"Any\", action.function(**kwargs))\n             ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^\n  File \"/srv/app/tests/kept/programs.py\", line 72, in odd\n    raise ValueError(f\"{n} is even\")\nValueError: 2 is even\nshoal: in action ''odd'' of ''odds'', key 2, run 658f9ef43d74f0aca349b4b85ba084f1\n"},1]],"step":"odds"}', NULL, '{"@":"error","@type":"builtins:ValueError","text":"2 is even","args":["2 is even"],"notes":["shoal: in action ''odd'' of ''odds'', key 2, run 658f9ef43d74f0aca349b4b85ba084f1"],"trace":["/srv/app/tests/kept/programs.py:72, in programs.<locals>.odd"]}', NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO kept.runs OVERRIDING SYSTEM VALUE VALUES (15, 12, 2, 4, 0.00016035699809435755, 4, 3, 1, 0, 1, 0, '#3', 'succeeded', '3f7bb79bef82f88ae629e5e723d95ce2', '3', '3', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO kept.runs OVERRIDING SYSTEM VALUE VALUES (16, 12, 3, 5, 0.00015084399637999013, 4, NULL, 1, 0, 1, 0, '#4', 'failed', 'b07720adff570366168d1d6d42275f88', '4', NULL, '{"number":5,"do":[["put","bad",4,{"@":"dataclass","@type":"shoal:ErrorInfo","type":"ValueError","message":"4 is even","traceback":"Traceback (most recent call last):\n  File \"/srv/app/shoal/_engine/fanout/workers.py\", line 322, in _execute\n    waited = await drive(context.copy(), living, self._add_some)\n             ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^\n  File \"/srv/app/shoal/_concurrency/cancellation.py\", line 144, in drive\n    trap = run(step, argument)\n  File \"/srv/app/shoal/_engine/walk.py\", line 101, in walk\n    change = await _perform(run, act)\n             ^^^^^^^^^^^^^^^^^^^^^^^^\n  File \"/srv/app/shoal/_engine/call.py\", line 461, in _call\n    result = await cast(\"Any\", action.function(**kwargs))\n             ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^\n  File \"/srv/app/tests/kept/programs.py\", line 72, in odd\n    raise ValueError(f\"{n} is even\")\nValueError: 4 is even\nshoal: in action ''odd'' of ''odds'', key 4, run 44d6f0d1b1bab9204085056d6b8251df\n"},3]],"step":"odds"}', NULL, '{"@":"error","@type":"builtins:ValueError","text":"4 is even","args":["4 is even"],"notes":["shoal: in action ''odd'' of ''odds'', key 4, run 44d6f0d1b1bab9204085056d6b8251df"],"trace":["/srv/app/tests/kept/programs.py:72, in programs.<locals>.odd"]}', NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO kept.runs OVERRIDING SYSTEM VALUE VALUES (17, 12, 0, 7, 0.00021506800112547353, 5, 4, 1, 0, 1, 0, '#1', 'succeeded', '7acd07b61be554459a3508f336447283', '1', '"2: ValueError, 4: ValueError"', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO kept.runs OVERRIDING SYSTEM VALUE VALUES (18, 12, 1, NULL, 8.542599971406162e-05, 5, NULL, 1, 0, 1, 0, '#2', 'failed', '931f3b67bc84d694a97d97a2bc842769', '2', NULL, NULL, NULL, '{"@":"error","@type":"builtins:ConnectionError","text":"look 2, the first time","args":["look 2, the first time"],"notes":["shoal: in action ''look'' of ''looks'', key 2, run 5523a3567d8193e035c6854bc44abf24"],"trace":["/srv/app/tests/kept/programs.py:77, in programs.<locals>.look", "/srv/app/tests/kept/programs.py:52, in World.note"]}', NULL, NULL, NULL, NULL, 1796095304.527261, NULL);
INSERT INTO kept.runs OVERRIDING SYSTEM VALUE VALUES (20, 19, 0, 1, 9.737400250742212e-05, 6, 5, 1, 0, 1, 0, '#1', 'succeeded', '3e89332a29ecfedc6f911502c1b8e086', '1', '1', '{"number":1,"do":[["add","sum",1]],"step":"frontier","found":[2,3],"at":1}', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO kept.runs OVERRIDING SYSTEM VALUE VALUES (21, 19, 1, 2, 0.00011183499736944214, 6, 5, 1, 0, 1, 0, '#2', 'succeeded', 'cd0a12076b5d0728bf284bbf738a9fec', '2', '2', '{"number":2,"do":[["add","sum",2]],"step":"frontier","found":[4,5],"at":3}', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO kept.runs OVERRIDING SYSTEM VALUE VALUES (22, 19, 2, 3, 0.0001450749987270683, 6, 5, 1, 0, 1, 0, '#3', 'succeeded', '714a0ec60f74af596b809794cb9318c9', '3', '3', '{"number":3,"do":[["add","sum",3]],"step":"frontier","found":[6,7],"at":5}', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO kept.runs OVERRIDING SYSTEM VALUE VALUES (23, 19, 3, NULL, 8.193199755623937e-05, 6, NULL, 1, 0, 1, 0, '#4', 'failed', 'd0dc73f09543cba602ed28c9ef722972', '4', NULL, NULL, NULL, '{"@":"error","@type":"builtins:ConnectionError","text":"visit 4, the first time","args":["visit 4, the first time"],"notes":["shoal: in action ''visit'' of ''frontier'', key 4, run b52b4b7faa6e17b0ad0569ddde0d2bb8"],"trace":["/srv/app/tests/kept/programs.py:82, in programs.<locals>.visit", "/srv/app/tests/kept/programs.py:52, in World.note"]}', NULL, NULL, NULL, NULL, 1796095304.6047468, NULL);
INSERT INTO kept.runs OVERRIDING SYSTEM VALUE VALUES (25, 24, 1, 1, 8.010799501789734e-05, 7, 6, 1, 0, 1, 0, '', 'succeeded', 'bbb80fec43b1f5dcefef101e2be46742', 'null', '"quick"', '{"number":1,"do":[["set","answer","quick"]],"step":"answer"}', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO kept.runs OVERRIDING SYSTEM VALUE VALUES (24, 0, NULL, NULL, NULL, 0, NULL, NULL, NULL, NULL, NULL, 'race', 'failed', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO kept.runs OVERRIDING SYSTEM VALUE VALUES (26, 24, 0, NULL, 0.010251936997519806, 8, NULL, 1, 0, 1, 0, '', 'cancelled', '638aa63a9457ce98ea8ec6ffeb736e0a', 'null', NULL, NULL, NULL, NULL, '''quick'' decided fan-out ''answer''', 'quick', '', NULL, 1796095304.6693487, NULL);
INSERT INTO kept.runs OVERRIDING SYSTEM VALUE VALUES (28, 27, 0, NULL, 8.83210013853386e-05, 9, 7, 1, 0, 1, 0, '#1', 'succeeded', '90ed2f4756728f977f9e0f74da59cc57', '1', '1', NULL, NULL, NULL, NULL, NULL, NULL, NULL, 1796095304.730565, NULL);
INSERT INTO kept.runs OVERRIDING SYSTEM VALUE VALUES (29, 27, 1, NULL, 0.00010219099931418896, 9, 7, 1, 0, 1, 0, '#2', 'succeeded', 'dc1182d2c1bec36ba9ace90bc91f4e53', '2', '4', NULL, NULL, NULL, NULL, NULL, NULL, NULL, 1796095304.7413416, NULL);
INSERT INTO kept.runs OVERRIDING SYSTEM VALUE VALUES (30, 27, 2, NULL, 7.356900459853932e-05, 9, NULL, 1, 0, 1, 0, '#3', 'failed', '2d132bd2552cdf06282d131da72a6dd1', '3', NULL, NULL, NULL, '{"@":"error","@type":"builtins:ConnectionError","text":"square 3, the first time","args":["square 3, the first time"],"notes":["shoal: in action ''square'' of ''add/parts'', key 3, run b994043498ecaedbe6796eb3e2e5057a"],"trace":["/srv/app/tests/kept/programs.py:114, in programs.<locals>.square", "/srv/app/tests/kept/programs.py:52, in World.note"]}', NULL, NULL, NULL, NULL, 1796095304.7427137, NULL);
INSERT INTO kept.runs OVERRIDING SYSTEM VALUE VALUES (27, 0, NULL, NULL, NULL, 0, NULL, NULL, NULL, NULL, NULL, 'own', 'failed', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO kept.runs OVERRIDING SYSTEM VALUE VALUES (33, 32, 0, 2, 0.010386677000497002, 11, 8, 1, 0, 1, 0, '#2', 'succeeded', '7c2aeb9841702e99b8d8204b92428bf5', '2', '"PAGE 2"', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO kept.runs OVERRIDING SYSTEM VALUE VALUES (34, 32, 1, NULL, 0.0032886850021895953, 11, NULL, 1, 0, 1, 0, '#3', 'failed', 'c89701ccee1a4f755e20c3a40f0bd860', '3', NULL, NULL, NULL, '{"@":"error","@type":"builtins:ConnectionError","text":"parse 3, the first time","args":["parse 3, the first time"],"notes":["shoal: in action ''parse'' of ''inner'', key 3, run 03fe2405cb2c1f93b6b991fa719210ad"],"trace":["/srv/app/tests/kept/programs.py:65, in programs.<locals>.parse", "/srv/app/tests/kept/programs.py:52, in World.note"]}', NULL, NULL, NULL, NULL, 1796095304.8407555, 'parse');
INSERT INTO kept.runs OVERRIDING SYSTEM VALUE VALUES (32, 31, 0, NULL, 0.03211346500029322, 10, NULL, 1, 0, 1, 0, 'a', 'failed', '9951cd165c673a7286b9d74e74440675', '"a"', NULL, NULL, NULL, '{"@":"error","@type":"builtins:ExceptionGroup","text":"a child of fan-out ''inner'' failed (1 sub-exception)","args":["a child of fan-out ''inner'' failed",[{"@":"error","@type":"builtins:ConnectionError","text":"parse 3, the first time","args":["parse 3, the first time"],"notes":["shoal: in action ''parse'' of ''inner'', key 3, run 03fe2405cb2c1f93b6b991fa719210ad"]}]],"notes":["shoal: in action ''inner'' of ''outer'', key ''a'', run c359a81100ff7a25e432bfeecf3eaaa1"]}', NULL, NULL, NULL, NULL, 1796095304.8491905, NULL);
INSERT INTO kept.runs OVERRIDING SYSTEM VALUE VALUES (31, 0, NULL, NULL, NULL, 0, NULL, NULL, NULL, NULL, NULL, 'nested', 'failed', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO kept.runs OVERRIDING SYSTEM VALUE VALUES (37, 36, 0, 2, 0.0037000349984737113, 1, 1, 1, 0, 1, 0, '#2', 'succeeded', '7c2aeb9841702e99b8d8204b92428bf5', '2', '"PAGE 2"', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO kept.runs OVERRIDING SYSTEM VALUE VALUES (38, 36, 1, NULL, 0.001582895994943101, 1, NULL, 1, 0, 1, 0, '#3', 'failed', 'c89701ccee1a4f755e20c3a40f0bd860', '3', NULL, NULL, NULL, '{"@":"error","@type":"builtins:ConnectionError","text":"parse 3, the first time","args":["parse 3, the first time"],"notes":["shoal: in action ''parse'' of ''titles'', key 3, run 0581c1c22961eb6553f4b6e3757fa6ec"],"trace":["/srv/app/tests/kept/programs.py:65, in programs.<locals>.parse", "/srv/app/tests/kept/programs.py:52, in World.note"]}', NULL, NULL, NULL, NULL, 1796095304.944286, 'parse');
INSERT INTO kept.runs OVERRIDING SYSTEM VALUE VALUES (36, 35, 0, NULL, 0.03589608099719044, 12, NULL, 1, 0, 1, 0, '', 'failed', '1fb978067919b2ff4fdc0413b554fecc', 'null', NULL, NULL, NULL, '{"@":"error","@type":"builtins:ExceptionGroup","text":"a child of fan-out ''titles'' failed (1 sub-exception)","args":["a child of fan-out ''titles'' failed",[{"@":"error","@type":"builtins:ConnectionError","text":"parse 3, the first time","args":["parse 3, the first time"],"notes":["shoal: in action ''parse'' of ''titles'', key 3, run 0581c1c22961eb6553f4b6e3757fa6ec"]}]],"notes":["shoal: in action ''titles'' of ''node'', key '''', run d6ce7345aaa0d0aa349f67c92547d5b5"]}', NULL, NULL, NULL, NULL, 1796095304.9499593, 'titles');
INSERT INTO kept.runs OVERRIDING SYSTEM VALUE VALUES (35, 0, NULL, NULL, NULL, 0, NULL, NULL, NULL, NULL, NULL, 'node', 'failed', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO kept.runs OVERRIDING SYSTEM VALUE VALUES (39, 0, NULL, NULL, NULL, 0, NULL, NULL, NULL, NULL, NULL, 'asking', 'halted', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO kept.runs OVERRIDING SYSTEM VALUE VALUES (40, 0, NULL, NULL, NULL, 0, NULL, NULL, NULL, NULL, NULL, 'loop', 'failed', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO kept.runs OVERRIDING SYSTEM VALUE VALUES (42, 41, 0, 1, 9.02640022104606e-05, 14, 5, 1, 0, 1, 0, '#3', 'succeeded', '714a0ec60f74af596b809794cb9318c9', '{"n":3}', '3', '{"number":1,"do":[["add","sum",3]],"step":"Pages"}', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO kept.runs OVERRIDING SYSTEM VALUE VALUES (43, 41, 1, NULL, 7.55319997551851e-05, 14, NULL, 1, 0, 1, 0, '#4', 'failed', 'd0dc73f09543cba602ed28c9ef722972', '{"n":4}', NULL, NULL, NULL, '{"@":"error","@type":"builtins:ConnectionError","text":"visit 4, the first time","args":["visit 4, the first time"],"notes":["shoal: in action ''visit'' of ''Pages'', key 4, run 771f69f5be2d744693ede17b009ba653"],"trace":["/srv/app/tests/kept/programs.py:82, in programs.<locals>.visit", "/srv/app/tests/kept/programs.py:52, in World.note"]}', NULL, NULL, NULL, NULL, 1796095305.0866883, NULL);
INSERT INTO kept.runs OVERRIDING SYSTEM VALUE VALUES (41, 0, NULL, NULL, NULL, 0, NULL, NULL, NULL, NULL, NULL, 'class', 'failed', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO kept.runs OVERRIDING SYSTEM VALUE VALUES (44, 0, NULL, NULL, NULL, 0, NULL, NULL, NULL, NULL, NULL, 'done', 'succeeded', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO kept.runs OVERRIDING SYSTEM VALUE VALUES (46, 45, 0, NULL, 0.00014008800644660369, 15, 11, 1, 0, 0, 0, '', 'succeeded', 'c8621c65e6d5ef1adf3080dde60716f1', 'null', '5', NULL, NULL, NULL, NULL, NULL, NULL, NULL, 1796095305.2076871, NULL);
INSERT INTO kept.runs OVERRIDING SYSTEM VALUE VALUES (47, 45, 1, NULL, 7.210600597318262e-05, 16, 12, 1, 0, 0, 0, '', 'succeeded', 'ee139d3aa09e69ada7555032bd65bb36', 'null', '5', NULL, NULL, NULL, NULL, NULL, NULL, NULL, 1796095305.2076871, NULL);
INSERT INTO kept.runs OVERRIDING SYSTEM VALUE VALUES (45, 0, NULL, NULL, NULL, 0, NULL, NULL, NULL, NULL, NULL, 'lost', 'failed', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO kept.saves VALUES (1, 2, 1796095304.2852547);
INSERT INTO kept.saves VALUES (1, 3, 1796095304.2985137);
INSERT INTO kept.saves VALUES (5, 2, 1796095304.3741438);
INSERT INTO kept.saves VALUES (5, 3, 1796095304.3965528);
INSERT INTO kept.saves VALUES (5, 4, 1796095304.404393);
INSERT INTO kept.saves VALUES (5, 5, 1796095304.4144902);
INSERT INTO kept.saves VALUES (5, 6, 1796095304.4212294);
INSERT INTO kept.saves VALUES (12, 5, 1796095304.4857264);
INSERT INTO kept.saves VALUES (12, 7, 1796095304.5154142);
INSERT INTO kept.saves VALUES (19, 1, 1796095304.5785074);
INSERT INTO kept.saves VALUES (19, 2, 1796095304.5898755);
INSERT INTO kept.saves VALUES (19, 3, 1796095304.5971186);
INSERT INTO kept.saves VALUES (24, 1, 1796095304.6592007);
INSERT INTO kept.saves VALUES (32, 2, 1796095304.8336382);
INSERT INTO kept.saves VALUES (36, 2, 1796095304.9337764);
INSERT INTO kept.saves VALUES (41, 1, 1796095305.077582);
SELECT pg_catalog.setval('kept.commands_id_seq', 1, false);
SELECT pg_catalog.setval('kept.forms_id_seq', 12, true);
SELECT pg_catalog.setval('kept.history_id_seq', 46, true);
SELECT pg_catalog.setval('kept.places_id_seq', 16, true);
SELECT pg_catalog.setval('kept.runs_id_seq', 47, true);
ALTER TABLE ONLY kept.claims
    ADD CONSTRAINT claims_pkey PRIMARY KEY (run_id);
ALTER TABLE ONLY kept.commands
    ADD CONSTRAINT commands_pkey PRIMARY KEY (id);
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
ALTER TABLE ONLY kept.reports
    ADD CONSTRAINT reports_pkey PRIMARY KEY (run);
ALTER TABLE ONLY kept.results
    ADD CONSTRAINT results_pkey PRIMARY KEY (key);
ALTER TABLE ONLY kept.roots
    ADD CONSTRAINT roots_pkey PRIMARY KEY (run);
ALTER TABLE ONLY kept.runs
    ADD CONSTRAINT runs_pkey PRIMARY KEY (id);
CREATE INDEX commands_by_run ON kept.commands USING btree (run);
CREATE INDEX history_by_number ON kept.history USING btree (run, number);
CREATE INDEX history_questions ON kept.history USING btree (run, number) WHERE (kind = ANY (ARRAY['asked'::text, 'answered'::text]));
CREATE INDEX results_by_end ON kept.results USING btree (ends_at) WHERE (ends_at IS NOT NULL);
CREATE INDEX roots_by_spawner ON kept.roots USING btree (spawner) WHERE (spawner IS NOT NULL);
CREATE INDEX runs_by_end ON kept.runs USING btree (parent, status, ended_at) WHERE (ended_at IS NOT NULL);
CREATE UNIQUE INDEX runs_by_key ON kept.runs USING btree (parent, place, key);
CREATE INDEX runs_by_status ON kept.runs USING btree (parent, status, applied NULLS FIRST);
CREATE INDEX saves_by_number ON kept.saves USING btree (run, number);
