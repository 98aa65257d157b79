PRAGMA application_id = 0x73686f61;
PRAGMA user_version = 5;
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
INSERT INTO "claims" VALUES('asking',1,NULL,'host','boot',1,'1',15.0,1.79607428335867905e+09,26220.110094907);
INSERT INTO "claims" VALUES('class',1,NULL,'host','boot',1,'1',15.0,1.79607428345122504e+09,26220.202641385);
INSERT INTO "claims" VALUES('done',1,NULL,'host','boot',1,'1',15.0,1.79607428351707649e+09,26220.26849222);
INSERT INTO "claims" VALUES('errors',1,NULL,'host','boot',1,'1',15.0,1.79607428288508343e+09,26219.636499242);
INSERT INTO "claims" VALUES('frontier',1,NULL,'host','boot',1,'1',15.0,1.79607428297474884e+09,26219.72616492);
INSERT INTO "claims" VALUES('listed',1,NULL,'host','boot',1,'1',15.0,1.79607428276719641e+09,26219.51861269);
INSERT INTO "claims" VALUES('loop',1,NULL,'host','boot',1,'1',15.0,1.7960742833986895e+09,26220.150105537);
INSERT INTO "claims" VALUES('lost',1,NULL,'host','boot',1,'1',15.0,1.79607428355050396e+09,26220.301919953);
INSERT INTO "claims" VALUES('map',1,NULL,'host','boot',1,'1',15.0,1.79607428266992044e+09,26219.421337292);
INSERT INTO "claims" VALUES('nested',1,NULL,'host','boot',1,'1',15.0,1.79607428317465186e+09,26219.92606761);
INSERT INTO "claims" VALUES('node',1,NULL,'host','boot',1,'1',15.0,1.79607428326898193e+09,26220.020397862);
INSERT INTO "claims" VALUES('own',1,NULL,'host','boot',1,'1',15.0,1.79607428311058712e+09,26219.862002992);
INSERT INTO "claims" VALUES('race',1,NULL,'host','boot',1,'1',15.0,1.79607428304500842e+09,26219.79642417);
CREATE TABLE forms (id INTEGER PRIMARY KEY, form TEXT NOT NULL UNIQUE);
INSERT INTO "forms" VALUES(1,'{"applied": ["put", "titles"], "own": [2, "parse", "title"]}');
INSERT INTO "forms" VALUES(2,'{"applied": ["within", "out"], "own": null}');
INSERT INTO "forms" VALUES(3,'{"applied": ["put", "odds"], "own": [1, "odd", "m"]}');
INSERT INTO "forms" VALUES(4,'{"applied": ["put", "looks"], "own": [1, "look", "seen"]}');
INSERT INTO "forms" VALUES(5,'{"applied": null, "own": [1, "visit", "grown"]}');
INSERT INTO "forms" VALUES(6,'{"applied": null, "own": [1, "quick", "answer"]}');
INSERT INTO "forms" VALUES(7,'{"applied": null, "own": [1, "square", "square"]}');
INSERT INTO "forms" VALUES(8,'{"applied": ["put", "inner"], "own": [2, "parse", "title"]}');
INSERT INTO "forms" VALUES(9,'{"applied": null, "own": [1, "left", "m"]}');
INSERT INTO "forms" VALUES(10,'{"applied": null, "own": [1, "right", "m"]}');
CREATE TABLE history (
        id INTEGER PRIMARY KEY,
        run INTEGER NOT NULL,
        number INTEGER NOT NULL,
        kind TEXT NOT NULL,
        step TEXT NOT NULL,
        data TEXT NOT NULL
    );
INSERT INTO "history" VALUES(1,1,0,'begun','titles','{"acts":["page"],"versions":["fetch=1,parse=1"],"keyed":true,"take":"title","into":"titles","shape":"by key","errors_into":null,"reduces":false,"grows":false,"until":"all"}');
INSERT INTO "history" VALUES(2,1,1,'update','titles','{"number":1,"do":[["set","titles",{"@":"StateMap","value":{}}]],"step":"titles"}');
INSERT INTO "history" VALUES(3,2,1,'update','fetch','{"number":1,"do":[["set","page","page 1"]],"step":"fetch"}');
INSERT INTO "history" VALUES(4,2,1,'completed','fetch','0');
INSERT INTO "history" VALUES(5,3,1,'update','fetch','{"number":1,"do":[["set","page","page 2"]],"step":"fetch"}');
INSERT INTO "history" VALUES(6,3,1,'completed','fetch','0');
INSERT INTO "history" VALUES(7,4,1,'update','fetch','{"number":1,"do":[["set","page","page 3"]],"step":"fetch"}');
INSERT INTO "history" VALUES(8,4,1,'completed','fetch','0');
INSERT INTO "history" VALUES(9,5,0,'begun','listed','{"acts":["fetch","both"],"versions":["fetch=1","fetch=1,parse=1"],"keyed":false,"take":["page"],"into":"out","shape":"by position and act","errors_into":null,"reduces":false,"grows":false,"until":"all"}');
INSERT INTO "history" VALUES(10,5,1,'update','listed','{"number":1,"do":[["set","out",{"@":"PositionedList","value":[],"at":[]}]],"step":"listed"}');
INSERT INTO "history" VALUES(11,7,1,'update','fetch','{"number":1,"do":[["set","page","page 1"]],"step":"fetch"}');
INSERT INTO "history" VALUES(12,7,1,'completed','fetch','0');
INSERT INTO "history" VALUES(13,9,1,'update','fetch','{"number":1,"do":[["set","page","page 2"]],"step":"fetch"}');
INSERT INTO "history" VALUES(14,9,1,'completed','fetch','0');
INSERT INTO "history" VALUES(15,11,1,'update','fetch','{"number":1,"do":[["set","page","page 3"]],"step":"fetch"}');
INSERT INTO "history" VALUES(16,11,1,'completed','fetch','0');
INSERT INTO "history" VALUES(17,12,0,'begun','odds','{"acts":["odd"],"versions":["odd=1"],"keyed":true,"take":"m","into":"odds","shape":"by key","errors_into":"bad","reduces":false,"grows":false,"until":"all"}');
INSERT INTO "history" VALUES(18,12,1,'update','odds','{"number":1,"do":[["set","odds",{"@":"StateMap","value":{}}],["set","bad",{"@":"StateMap","value":{}}]],"step":"odds"}');
INSERT INTO "history" VALUES(19,12,5,'completed','odds','5');
INSERT INTO "history" VALUES(20,12,5,'begun','looks','{"acts":["look"],"versions":["look=1"],"keyed":true,"take":"seen","into":"looks","shape":"by key","errors_into":null,"reduces":false,"grows":false,"until":"all"}');
INSERT INTO "history" VALUES(21,12,6,'update','looks','{"number":6,"do":[["set","looks",{"@":"StateMap","value":{}}]],"step":"looks"}');
INSERT INTO "history" VALUES(22,19,0,'begun','frontier','{"acts":["visit"],"versions":["visit=1"],"keyed":true,"take":null,"into":null,"shape":null,"errors_into":null,"reduces":true,"grows":true,"until":"all"}');
INSERT INTO "history" VALUES(23,24,0,'begun','answer','{"acts":["slow","quick"],"versions":["slow=1","quick=1"],"keyed":null,"take":null,"into":"answer","shape":"one","errors_into":null,"reduces":false,"grows":false,"until":"first(1)"}');
INSERT INTO "history" VALUES(24,24,1,'decision','answer','[["quick",""],[["quick",""]],"''quick'' decided fan-out ''answer''"]');
INSERT INTO "history" VALUES(25,24,1,'completed','answer','1');
INSERT INTO "history" VALUES(26,31,0,'begun','outer','{"acts":["inner"],"versions":["inner=page=fetch=1,parse=1"],"keyed":true,"take":"inner","into":"outer","shape":"by key","errors_into":null,"reduces":false,"grows":false,"until":"all"}');
INSERT INTO "history" VALUES(27,31,1,'update','outer','{"number":1,"do":[["set","outer",{"@":"StateMap","value":{}}]],"step":"outer"}');
INSERT INTO "history" VALUES(28,32,0,'begun','inner','{"acts":["page"],"versions":["fetch=1,parse=1"],"keyed":true,"take":"title","into":"inner","shape":"by key","errors_into":null,"reduces":false,"grows":false,"until":"all"}');
INSERT INTO "history" VALUES(29,32,1,'update','inner','{"number":1,"do":[["set","inner",{"@":"StateMap","value":{}}]],"step":"inner"}');
INSERT INTO "history" VALUES(30,33,1,'update','fetch','{"number":1,"do":[["set","page","page 2"]],"step":"fetch"}');
INSERT INTO "history" VALUES(31,33,1,'completed','fetch','0');
INSERT INTO "history" VALUES(32,34,1,'update','fetch','{"number":1,"do":[["set","page","page 3"]],"step":"fetch"}');
INSERT INTO "history" VALUES(33,34,1,'completed','fetch','0');
INSERT INTO "history" VALUES(34,36,0,'begun','titles','{"acts":["page"],"versions":["fetch=1,parse=1"],"keyed":true,"take":"title","into":"titles","shape":"by key","errors_into":null,"reduces":false,"grows":false,"until":"all"}');
INSERT INTO "history" VALUES(35,36,1,'update','titles','{"number":1,"do":[["set","titles",{"@":"StateMap","value":{}}]],"step":"titles"}');
INSERT INTO "history" VALUES(36,37,1,'update','fetch','{"number":1,"do":[["set","page","page 2"]],"step":"fetch"}');
INSERT INTO "history" VALUES(37,37,1,'completed','fetch','0');
INSERT INTO "history" VALUES(38,38,1,'update','fetch','{"number":1,"do":[["set","page","page 3"]],"step":"fetch"}');
INSERT INTO "history" VALUES(39,38,1,'completed','fetch','0');
INSERT INTO "history" VALUES(40,39,0,'asked','ask','["approve","May it be sent?","62b3dd5256d0b306b0cfb5570bb07661"]');
INSERT INTO "history" VALUES(41,40,1,'update','turn','{"number":1,"do":[["set","round",1]],"step":"turn"}');
INSERT INTO "history" VALUES(42,40,1,'completed','turn','0');
INSERT INTO "history" VALUES(43,41,0,'begun','Pages','{"acts":null,"versions":null,"keyed":null,"take":null,"into":null,"shape":null,"errors_into":null,"reduces":true,"grows":false,"until":"all"}');
INSERT INTO "history" VALUES(44,44,1,'update','fetch','{"number":1,"do":[["set","page","page 7"]],"step":"fetch"}');
INSERT INTO "history" VALUES(45,44,1,'completed','fetch','0');
INSERT INTO "history" VALUES(46,45,0,'begun','never','{"acts":["left","right"],"versions":["left=1","right=1"],"keyed":null,"take":"m","into":"never","shape":"one","errors_into":null,"reduces":false,"grows":false,"until":"first(1)"}');
CREATE TABLE places (
        id INTEGER PRIMARY KEY, step TEXT NOT NULL, visit INTEGER NOT NULL, act TEXT NOT NULL,
        UNIQUE (step, visit, act)
    );
INSERT INTO "places" VALUES(1,'titles',0,'page');
INSERT INTO "places" VALUES(2,'listed',0,'fetch');
INSERT INTO "places" VALUES(3,'listed',0,'both');
INSERT INTO "places" VALUES(4,'odds',0,'odd');
INSERT INTO "places" VALUES(5,'looks',0,'look');
INSERT INTO "places" VALUES(6,'frontier',0,'visit');
INSERT INTO "places" VALUES(7,'answer',0,'quick');
INSERT INTO "places" VALUES(8,'answer',0,'slow');
INSERT INTO "places" VALUES(9,'add/parts',0,'square');
INSERT INTO "places" VALUES(10,'outer',0,'inner');
INSERT INTO "places" VALUES(11,'inner',0,'page');
INSERT INTO "places" VALUES(12,'node',0,'node');
INSERT INTO "places" VALUES(13,'Pages',0,'visit');
INSERT INTO "places" VALUES(14,'never',0,'left');
INSERT INTO "places" VALUES(15,'never',0,'right');
CREATE TABLE results (key TEXT PRIMARY KEY, ends_at REAL, operations TEXT NOT NULL);
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
    , error TEXT, secret TEXT NOT NULL DEFAULT '[]');
INSERT INTO "roots" VALUES(1,'map','3',1.79607428267714714e+09,1.79607428273376774e+09,'{"ns":[1,2,3,4]}',NULL,'{}',NULL,NULL,'ExceptionGroup: a child of fan-out ''titles'' failed: ConnectionError: parse 3, the first time','[]');
INSERT INTO "roots" VALUES(5,'listed','3',1.79607428278161144e+09,1.79607428285358047e+09,'{"ns":[1,2,3]}',NULL,'{}',NULL,NULL,'ExceptionGroup: a child of fan-out ''listed'' failed: ConnectionError: parse 3, the first time','[]');
INSERT INTO "roots" VALUES(12,'errors','3',1.79607428289294648e+09,1.79607428294549918e+09,'{"ns":[1,2,3,4]}',NULL,'{}',NULL,NULL,'ExceptionGroup: a child of fan-out ''looks'' failed: ConnectionError: look 2, the first time','[]');
INSERT INTO "roots" VALUES(19,'frontier','3',1.79607428298140072e+09,1.79607428301342201e+09,'{"starts":[1],"sum":0}',NULL,'{}',NULL,NULL,'ExceptionGroup: a child of fan-out ''frontier'' failed: ConnectionError: visit 4, the first time','[]');
INSERT INTO "roots" VALUES(24,'race','3',1.79607428305349731e+09,1.79607428308120346e+09,'{}',NULL,'{}',NULL,NULL,'ConnectionError: judge, the first time','[]');
INSERT INTO "roots" VALUES(27,'own','3',1.79607428312155485e+09,1.7960742831455028e+09,'{"ns":[1,2,3,4]}',NULL,'{}',NULL,NULL,'ConnectionError: a part failed','[]');
INSERT INTO "roots" VALUES(31,'nested','3',1.7960742831895318e+09,1.79607428323747086e+09,'{"ns":[2,3],"names":["a","b"]}',NULL,'{}',NULL,NULL,'ExceptionGroup: a child of fan-out ''outer'' failed: ConnectionError: parse 3, the first time','[]');
INSERT INTO "roots" VALUES(35,'node','3',1.7960742832810018e+09,1.79607428332423496e+09,'{"ns":[2,3]}',NULL,'{}',NULL,NULL,'ExceptionGroup: a child of fan-out ''titles'' failed: ConnectionError: parse 3, the first time','[]');
INSERT INTO "roots" VALUES(39,'asking','3',1.79607428336079955e+09,1.79607428337734913e+09,'{}',NULL,'{}',NULL,NULL,NULL,'[]');
INSERT INTO "roots" VALUES(40,'loop','3',1.79607428340945887e+09,1.79607428342433929e+09,'{"round":0}',NULL,'{}',NULL,NULL,'ConnectionError: turn 1, the first time','[]');
INSERT INTO "roots" VALUES(41,'class','3',1.79607428346548724e+09,1.79607428348553705e+09,'{"ns":[3,4,5],"sum":0}',NULL,'{}',NULL,NULL,'ExceptionGroup: a child of fan-out ''Pages'' failed: ConnectionError: visit 4, the first time','[]');
INSERT INTO "roots" VALUES(44,'done','3',1.79607428352533221e+09,1.79607428352914452e+09,'{"n":7}',NULL,'{}',NULL,NULL,NULL,'[]');
INSERT INTO "roots" VALUES(45,'lost','3',1.79607428356549096e+09,1.79607428358165121e+09,'{"n":5}',NULL,'{}',NULL,NULL,'NobodyAccepted: fan-out ''never'': none of its 2 children was accepted: Rejected: 5 was not accepted; Rejected: 5 was not accepted','[]');
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
INSERT INTO "runs" VALUES(1,0,0,'map',NULL,'failed',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "runs" VALUES(2,1,1,1,0,'succeeded',2,1,1,1.36590879992581903e-02,0,0,'d379c5779fb7248f2f5487c5dac1a092',1,'1','"PAGE 1"',NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "runs" VALUES(3,1,1,2,1,'succeeded',3,1,1,1.04659550015639979e-02,0,0,'7c2aeb9841702e99b8d8204b92428bf5',1,'2','"PAGE 2"',NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "runs" VALUES(4,1,1,3,2,'failed',NULL,1,1,1.58467899746028706e-03,0,0,'c89701ccee1a4f755e20c3a40f0bd860',NULL,'3',NULL,NULL,NULL,'{"@":"error","@type":"builtins:ConnectionError","text":"parse 3, the first time","args":["parse 3, the first time"],"notes":["shoal: in action ''parse'' of ''titles'', key 3, run 0239d8408426d7ef679a062e7b8a3f50"]}',NULL,NULL,NULL);
INSERT INTO "runs" VALUES(5,0,0,'listed',NULL,'failed',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "runs" VALUES(6,5,2,0,0,'succeeded',2,1,1,1.53197001054650172e-04,0,0,'1fce372ffd347d6099ba9765fbf42c83',2,'1','{"page":"page 1"}',NULL,'{"number":1,"do":[["set","page","page 1"]],"step":"fetch"}',NULL,NULL,NULL,NULL);
INSERT INTO "runs" VALUES(7,5,3,0,1,'succeeded',3,1,1,7.98471599773620255e-03,0,0,'046eaa5bc46a2d620adcaafc4b3ba044',2,'1','{"page":"page 1"}',NULL,'{"number":2,"do":[["set","title","PAGE 1"]],"step":"parse"}',NULL,NULL,NULL,NULL);
INSERT INTO "runs" VALUES(8,5,2,1,2,'succeeded',4,1,1,1.27749997773207724e-04,0,0,'2ad0fdab3dac00d166c85f32e7f212f1',2,'2','{"page":"page 2"}',NULL,'{"number":1,"do":[["set","page","page 2"]],"step":"fetch"}',NULL,NULL,NULL,NULL);
INSERT INTO "runs" VALUES(9,5,3,1,3,'succeeded',5,1,1,5.98569299836526624e-03,0,0,'05a2c3a7bab52bb086e9e0ad16d33b79',2,'2','{"page":"page 2"}',NULL,'{"number":2,"do":[["set","title","PAGE 2"]],"step":"parse"}',NULL,NULL,NULL,NULL);
INSERT INTO "runs" VALUES(10,5,2,2,4,'succeeded',6,1,1,1.41851000080350786e-04,0,0,'b81d177187bc5c4106965dc6ad097352',2,'3','{"page":"page 3"}',NULL,'{"number":1,"do":[["set","page","page 3"]],"step":"fetch"}',NULL,NULL,NULL,NULL);
INSERT INTO "runs" VALUES(11,5,3,2,5,'failed',NULL,1,1,7.98587800090899691e-03,0,0,'ac3d96e841bbf2914451dd948ac1c40c',NULL,'3',NULL,NULL,NULL,'{"@":"error","@type":"builtins:ConnectionError","text":"parse 3, the first time","args":["parse 3, the first time"],"notes":["shoal: in action ''parse'' of ''listed'', key 2, run 4805127f7e773e017f0973e26cd96978"]}',NULL,NULL,NULL);
INSERT INTO "runs" VALUES(12,0,0,'errors',NULL,'failed',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "runs" VALUES(13,12,4,1,0,'succeeded',2,1,1,2.57241001236252486e-04,0,0,'8f8f2aab5a39d80dc98a18dfd4aec95d',3,'1','1',NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "runs" VALUES(14,12,4,2,1,'failed',3,1,1,0.000150914002006175,0,0,'9887b78cbe4cbafaa96d0a18557efe70',NULL,'2',NULL,'{"number":3,"do":[["put","bad",2,{"@":"dataclass","@type":"shoal:ErrorInfo","type":"ValueError","message":"2 is even","traceback":"Traceback (most recent call last):\n  File \"/srv/app/shoal/_engine/fanout/workers.py\", line 302, in _execute\n    waited = await drive(self._scope.context.copy(), living, self._add_some)\n             ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^\n  File \"/srv/app/shoal/_concurrency/cancellation.py\", line 144, in drive\n    trap = run(step, argument)\n  File \"/srv/app/shoal/_engine/walk.py\", line 98, in walk\n    change = await _perform(run, act)\n             ^^^^^^^^^^^^^^^^^^^^^^^^\n  File \"/srv/app/shoal/_engine/call.py\", line 373, in _call\n    result = await cast(\"Any\", action.function(**kwargs))\n             ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^\n  File \"/srv/app/tests/kept/programs.py\", line 72, in odd\n    raise ValueError(f\"{n} is even\")\nValueError: 2 is even\nshoal: in action ''odd'' of ''odds'', key 2, run 658f9ef43d74f0aca349b4b85ba084f1\n"},1]],"step":"odds"}',NULL,'{"@":"error","@type":"builtins:ValueError","text":"2 is even","args":["2 is even"],"notes":["shoal: in action ''odd'' of ''odds'', key 2, run 658f9ef43d74f0aca349b4b85ba084f1"]}',NULL,NULL,NULL);
INSERT INTO "runs" VALUES(15,12,4,3,2,'succeeded',4,1,1,1.8457400074112229e-04,0,0,'3f7bb79bef82f88ae629e5e723d95ce2',3,'3','3',NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "runs" VALUES(16,12,4,4,3,'failed',5,1,1,0.000174328000866808,0,0,'b07720adff570366168d1d6d42275f88',NULL,'4',NULL,'{"number":5,"do":[["put","bad",4,{"@":"dataclass","@type":"shoal:ErrorInfo","type":"ValueError","message":"4 is even","traceback":"Traceback (most recent call last):\n  File \"/srv/app/shoal/_engine/fanout/workers.py\", line 302, in _execute\n    waited = await drive(self._scope.context.copy(), living, self._add_some)\n             ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^\n  File \"/srv/app/shoal/_concurrency/cancellation.py\", line 144, in drive\n    trap = run(step, argument)\n  File \"/srv/app/shoal/_engine/walk.py\", line 98, in walk\n    change = await _perform(run, act)\n             ^^^^^^^^^^^^^^^^^^^^^^^^\n  File \"/srv/app/shoal/_engine/call.py\", line 373, in _call\n    result = await cast(\"Any\", action.function(**kwargs))\n             ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^\n  File \"/srv/app/tests/kept/programs.py\", line 72, in odd\n    raise ValueError(f\"{n} is even\")\nValueError: 4 is even\nshoal: in action ''odd'' of ''odds'', key 4, run 44d6f0d1b1bab9204085056d6b8251df\n"},3]],"step":"odds"}',NULL,'{"@":"error","@type":"builtins:ValueError","text":"4 is even","args":["4 is even"],"notes":["shoal: in action ''odd'' of ''odds'', key 4, run 44d6f0d1b1bab9204085056d6b8251df"]}',NULL,NULL,NULL);
INSERT INTO "runs" VALUES(17,12,5,1,0,'succeeded',7,1,1,2.26825999561697244e-04,0,0,'4d2ea064bef8965a598e3c4c2a8cc55d',4,'1','"2: ValueError, 4: ValueError"',NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "runs" VALUES(18,12,5,2,1,'failed',NULL,1,1,9.60729994403664e-05,0,0,'5aef02948dcaf34685f0e69a131a4cdb',NULL,'2',NULL,NULL,NULL,'{"@":"error","@type":"builtins:ConnectionError","text":"look 2, the first time","args":["look 2, the first time"],"notes":["shoal: in action ''look'' of ''looks'', key 2, run 5523a3567d8193e035c6854bc44abf24"]}',NULL,NULL,NULL);
INSERT INTO "runs" VALUES(19,0,0,'frontier',NULL,'failed',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "runs" VALUES(20,19,6,1,0,'succeeded',1,1,1,1.04755999927874654e-04,0,0,'3e89332a29ecfedc6f911502c1b8e086',5,'1','1','{"number":1,"do":[["add","sum",1]],"step":"frontier","found":[2,3],"at":1}',NULL,NULL,NULL,NULL,NULL);
INSERT INTO "runs" VALUES(21,19,6,2,1,'succeeded',2,1,1,1.06807998236035928e-04,0,0,'cd0a12076b5d0728bf284bbf738a9fec',5,'2','2','{"number":2,"do":[["add","sum",2]],"step":"frontier","found":[4,5],"at":3}',NULL,NULL,NULL,NULL,NULL);
INSERT INTO "runs" VALUES(22,19,6,3,2,'succeeded',3,1,1,1.13698999484768137e-04,0,0,'714a0ec60f74af596b809794cb9318c9',5,'3','3','{"number":3,"do":[["add","sum",3]],"step":"frontier","found":[6,7],"at":5}',NULL,NULL,NULL,NULL,NULL);
INSERT INTO "runs" VALUES(23,19,6,4,3,'failed',NULL,1,1,8.52470002428162843e-05,0,0,'d0dc73f09543cba602ed28c9ef722972',NULL,'4',NULL,NULL,NULL,'{"@":"error","@type":"builtins:ConnectionError","text":"visit 4, the first time","args":["visit 4, the first time"],"notes":["shoal: in action ''visit'' of ''frontier'', key 4, run b52b4b7faa6e17b0ad0569ddde0d2bb8"]}',NULL,NULL,NULL);
INSERT INTO "runs" VALUES(24,0,0,'race',NULL,'failed',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "runs" VALUES(25,24,7,'',1,'succeeded',1,1,1,9.00029990589246153e-05,0,0,'bbb80fec43b1f5dcefef101e2be46742',6,'null','"quick"','{"number":1,"do":[["set","answer","quick"]],"step":"answer"}',NULL,NULL,NULL,NULL,NULL);
INSERT INTO "runs" VALUES(26,24,8,'',0,'cancelled',NULL,1,1,7.67731099767843261e-03,0,0,'638aa63a9457ce98ea8ec6ffeb736e0a',NULL,'null',NULL,NULL,NULL,NULL,'''quick'' decided fan-out ''answer''','quick','');
INSERT INTO "runs" VALUES(27,0,0,'own',NULL,'failed',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "runs" VALUES(28,27,9,1,0,'succeeded',NULL,1,1,1.13078000140376389e-04,0,0,'90ed2f4756728f977f9e0f74da59cc57',7,'1','1',NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "runs" VALUES(29,27,9,2,1,'succeeded',NULL,1,1,1.29202002426609396e-04,0,0,'dc1182d2c1bec36ba9ace90bc91f4e53',7,'2','4',NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "runs" VALUES(30,27,9,3,2,'failed',NULL,1,1,9.76839983195532113e-05,0,0,'2d132bd2552cdf06282d131da72a6dd1',NULL,'3',NULL,NULL,NULL,'{"@":"error","@type":"builtins:ConnectionError","text":"square 3, the first time","args":["square 3, the first time"],"notes":["shoal: in action ''square'' of ''add/parts'', key 3, run b994043498ecaedbe6796eb3e2e5057a"]}',NULL,NULL,NULL);
INSERT INTO "runs" VALUES(31,0,0,'nested',NULL,'failed',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "runs" VALUES(32,31,10,'a',0,'failed',NULL,1,1,2.93330729982699267e-02,0,0,'9951cd165c673a7286b9d74e74440675',NULL,'"a"',NULL,NULL,NULL,'{"@":"error","@type":"builtins:ExceptionGroup","text":"a child of fan-out ''inner'' failed (1 sub-exception)","args":["a child of fan-out ''inner'' failed",[{"@":"error","@type":"builtins:ConnectionError","text":"parse 3, the first time","args":["parse 3, the first time"],"notes":["shoal: in action ''parse'' of ''inner'', key 3, run 03fe2405cb2c1f93b6b991fa719210ad"]}]],"notes":["shoal: in action ''inner'' of ''outer'', key ''a'', run c359a81100ff7a25e432bfeecf3eaaa1"]}',NULL,NULL,NULL);
INSERT INTO "runs" VALUES(33,32,11,2,0,'succeeded',2,1,1,3.87441400016541592e-03,0,0,'7c2aeb9841702e99b8d8204b92428bf5',8,'2','"PAGE 2"',NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "runs" VALUES(34,32,11,3,1,'failed',NULL,1,1,3.970765999838477e-03,0,0,'c89701ccee1a4f755e20c3a40f0bd860',NULL,'3',NULL,NULL,NULL,'{"@":"error","@type":"builtins:ConnectionError","text":"parse 3, the first time","args":["parse 3, the first time"],"notes":["shoal: in action ''parse'' of ''inner'', key 3, run 03fe2405cb2c1f93b6b991fa719210ad"]}',NULL,NULL,NULL);
INSERT INTO "runs" VALUES(35,0,0,'node',NULL,'failed',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "runs" VALUES(36,35,12,'',0,'failed',NULL,1,1,3.33968359991558827e-02,0,0,'1fb978067919b2ff4fdc0413b554fecc',NULL,'null',NULL,NULL,NULL,'{"@":"error","@type":"builtins:ExceptionGroup","text":"a child of fan-out ''titles'' failed (1 sub-exception)","args":["a child of fan-out ''titles'' failed",[{"@":"error","@type":"builtins:ConnectionError","text":"parse 3, the first time","args":["parse 3, the first time"],"notes":["shoal: in action ''parse'' of ''titles'', key 3, run 0581c1c22961eb6553f4b6e3757fa6ec"]}]],"notes":["shoal: in action ''titles'' of ''node'', key '''', run d6ce7345aaa0d0aa349f67c92547d5b5"]}',NULL,NULL,NULL);
INSERT INTO "runs" VALUES(37,36,1,2,0,'succeeded',2,1,1,3.8952239992795512e-03,0,0,'7c2aeb9841702e99b8d8204b92428bf5',1,'2','"PAGE 2"',NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "runs" VALUES(38,36,1,3,1,'failed',NULL,1,1,4.28252800338668748e-03,0,0,'c89701ccee1a4f755e20c3a40f0bd860',NULL,'3',NULL,NULL,NULL,'{"@":"error","@type":"builtins:ConnectionError","text":"parse 3, the first time","args":["parse 3, the first time"],"notes":["shoal: in action ''parse'' of ''titles'', key 3, run 0581c1c22961eb6553f4b6e3757fa6ec"]}',NULL,NULL,NULL);
INSERT INTO "runs" VALUES(39,0,0,'asking',NULL,'halted',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "runs" VALUES(40,0,0,'loop',NULL,'failed',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "runs" VALUES(41,0,0,'class',NULL,'failed',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "runs" VALUES(42,41,13,3,0,'succeeded',1,1,1,1.18825999379623681e-04,0,0,'714a0ec60f74af596b809794cb9318c9',5,'{"n":3}','3','{"number":1,"do":[["add","sum",3]],"step":"Pages"}',NULL,NULL,NULL,NULL,NULL);
INSERT INTO "runs" VALUES(43,41,13,4,1,'failed',NULL,1,1,8.39839995023794472e-05,0,0,'d0dc73f09543cba602ed28c9ef722972',NULL,'{"n":4}',NULL,NULL,NULL,'{"@":"error","@type":"builtins:ConnectionError","text":"visit 4, the first time","args":["visit 4, the first time"],"notes":["shoal: in action ''visit'' of ''Pages'', key 4, run 771f69f5be2d744693ede17b009ba653"]}',NULL,NULL,NULL);
INSERT INTO "runs" VALUES(44,0,0,'done',NULL,'succeeded',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "runs" VALUES(45,0,0,'lost',NULL,'failed',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "runs" VALUES(46,45,14,'',0,'succeeded',NULL,0,1,1.78124002559343352e-04,0,0,'c8621c65e6d5ef1adf3080dde60716f1',9,'null','5',NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "runs" VALUES(47,45,15,'',1,'succeeded',NULL,0,1,8.47459996293764561e-05,0,0,'ee139d3aa09e69ada7555032bd65bb36',10,'null','5',NULL,NULL,NULL,NULL,NULL,NULL);
CREATE UNIQUE INDEX runs_by_key ON runs (parent, place, key);
CREATE INDEX runs_by_status ON runs (parent, status, applied);
CREATE INDEX history_by_number ON history (run, number);
CREATE VIEW child_runs AS
        SELECT runs.id, parent, step, visit, act, key, position,
            coalesce(status, 'running') AS status, element, value,
            error ->> '@type' AS error_type, error ->> 'text' AS error_text, error, reason,
            applied, used, attempts, elapsed, abandoned
        FROM runs JOIN places ON places.id = place WHERE position IS NOT NULL;
CREATE INDEX results_by_end ON results (ends_at) WHERE ends_at IS NOT NULL;
CREATE VIEW root_runs AS
        SELECT runs.id, runs.key AS run_id, application, version,
            coalesce(status, 'running') AS status, reason, began_at, ended_at, first,
            forked_from, forked_at, roots.error
        FROM runs JOIN roots ON roots.run = runs.id;
COMMIT;
