-- A file of the layout 1, as shoal wrote it then: what a newer one has to make of it is tested.
PRAGMA application_id = 0x73686f61;
PRAGMA user_version = 1;
BEGIN TRANSACTION;
CREATE TABLE claims (
        run_id TEXT PRIMARY KEY,
        epoch INTEGER NOT NULL,
        execution TEXT,
        host TEXT NOT NULL,
        boot TEXT NOT NULL,
        pid INTEGER NOT NULL,
        started TEXT NOT NULL,
        lease REAL NOT NULL,
        seen_at REAL NOT NULL,
        seen_uptime REAL NOT NULL
    ) WITHOUT ROWID;
INSERT INTO "claims" VALUES('crawl-1',1,NULL,'host','boot',1,'1',15.0,1.79567230692124438e+09,1409.750515254);
INSERT INTO "claims" VALUES('crawl-2',1,NULL,'host','boot',1,'1',15.0,1.79567230693185853e+09,1409.761129342);
CREATE TABLE forms (id INTEGER PRIMARY KEY, form TEXT NOT NULL UNIQUE);
INSERT INTO "forms" VALUES(1,'{"applied": ["put", "titles"], "own": [2, "parse", "title"]}');
INSERT INTO "forms" VALUES(2,'{"applied": null, "own": [2, "parse", "title"]}');
CREATE TABLE history (
        id INTEGER PRIMARY KEY,
        run INTEGER NOT NULL,
        number INTEGER NOT NULL,
        kind TEXT NOT NULL,
        step TEXT NOT NULL,
        data TEXT NOT NULL
    );
INSERT INTO "history" VALUES(1,1,1,'update','crawl','{"number":1,"do":[["set","titles",{"@":"StateMap","value":{}}]],"step":"crawl"}');
INSERT INTO "history" VALUES(2,2,1,'update','fetch','{"number":1,"do":[["set","page",{"title":"A"}]],"step":"fetch"}');
INSERT INTO "history" VALUES(3,2,1,'completed','fetch','0');
INSERT INTO "history" VALUES(4,3,1,'update','fetch','{"number":1,"do":[["set","page",{"title":"C"}]],"step":"fetch"}');
INSERT INTO "history" VALUES(5,3,1,'completed','fetch','0');
INSERT INTO "history" VALUES(6,1,3,'completed','crawl','3');
INSERT INTO "history" VALUES(7,5,1,'update','crawl','{"number":1,"do":[["set","titles",{"@":"StateMap","value":{}}]],"step":"crawl"}');
INSERT INTO "history" VALUES(8,6,1,'update','fetch','{"number":1,"do":[["set","page",{"title":"A"}]],"step":"fetch"}');
INSERT INTO "history" VALUES(9,6,1,'completed','fetch','0');
CREATE TABLE places (
        id INTEGER PRIMARY KEY, step TEXT NOT NULL, visit INTEGER NOT NULL, act TEXT NOT NULL,
        UNIQUE (step, visit, act)
    );
INSERT INTO "places" VALUES(1,'crawl',0,'crawl-one');
CREATE TABLE roots (
        run INTEGER PRIMARY KEY,
        application TEXT NOT NULL,
        version TEXT NOT NULL,
        began_at REAL NOT NULL,
        ended_at REAL,
        first TEXT NOT NULL,
        after TEXT,
        visits TEXT NOT NULL,
        forked_from TEXT,
        forked_at INTEGER
    );
INSERT INTO "roots" VALUES(1,'crawl','1',1.79567230692323946e+09,1.7956723069279251e+09,'{"items":["a","b","c"]}',NULL,'{}',NULL,NULL);
INSERT INTO "roots" VALUES(5,'crawl','1',1.79567230693343567e+09,1.79567230693667054e+09,'{"items":["a","a"]}',NULL,'{}',NULL,NULL);
CREATE TABLE runs (
        id INTEGER PRIMARY KEY,
        parent INTEGER NOT NULL,
        place INTEGER NOT NULL,
        key NOT NULL,
        position INTEGER,
        status TEXT,
        applied INTEGER,
        used INTEGER,
        attempts INTEGER,
        elapsed REAL,
        abandoned INTEGER,
        crashes INTEGER,
        digest TEXT,
        form INTEGER,
        element TEXT,
        value TEXT,
        change TEXT,
        own TEXT,
        error TEXT,
        reason TEXT,
        winner_act TEXT,
        winner_key
    );
INSERT INTO "runs" VALUES(1,0,0,'crawl-1',NULL,'succeeded',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "runs" VALUES(2,1,1,'a',0,'succeeded',2,1,1,1.47439500005930312e-03,0,0,'83defdbda2688ffb2592a6e98d04be7a',1,'"a"','"A"',NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "runs" VALUES(3,1,1,'c',2,'succeeded',3,1,1,1.0473090001141827e-03,0,0,'0ee6a73c621f5aa305bc19c58cb2dfce',1,'"c"','"C"',NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "runs" VALUES(4,1,1,'b',1,'failed',NULL,1,1,9.27680000586406094e-05,0,0,'f2f7eb91d6f806711ed4f6245b2cf521',NULL,'"b"',NULL,NULL,NULL,'{"@":"error","@type":"builtins:LookupError","text":"no such page","args":["no such page"],"notes":["shoal: in action ''fetch'' of ''crawl'', key ''b'', run 6c238eff2f6e124d358eb421d36cf639"]}',NULL,NULL,NULL);
INSERT INTO "runs" VALUES(5,0,0,'crawl-2',NULL,'failed',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "runs" VALUES(6,5,1,'a',0,'succeeded',NULL,0,1,1.21758199998112104e-03,0,0,'83defdbda2688ffb2592a6e98d04be7a',2,'"a"','"A"',NULL,NULL,NULL,NULL,NULL,NULL);
CREATE UNIQUE INDEX runs_by_key ON runs (parent, place, key);
CREATE INDEX runs_by_status ON runs (parent, status, applied);
CREATE INDEX history_by_number ON history (run, number);
CREATE VIEW root_runs AS
        SELECT runs.id, runs.key AS run_id, application, version,
            coalesce(status, 'running') AS status, reason, began_at, ended_at, first,
            forked_from, forked_at
        FROM runs JOIN roots ON roots.run = runs.id;
CREATE VIEW child_runs AS
        SELECT runs.id, parent, step, visit, act, key, position,
            coalesce(status, 'running') AS status, element, value,
            error ->> '@type' AS error_type, error ->> 'text' AS error_text, error, reason,
            applied, used, attempts, elapsed, abandoned
        FROM runs JOIN places ON places.id = place WHERE position IS NOT NULL;
COMMIT;
