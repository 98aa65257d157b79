PRAGMA application_id = 0x73686f61;
PRAGMA user_version = 6;
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
INSERT INTO "claims" VALUES('asking',1,NULL,'host','boot',1,'1',15.0,1.79609530149067759e+09,47238.242093357);
INSERT INTO "claims" VALUES('class',1,NULL,'host','boot',1,'1',15.0,1.79609530159872245e+09,47238.35013853);
INSERT INTO "claims" VALUES('done',1,NULL,'host','boot',1,'1',15.0,1.79609530166497111e+09,47238.416387035);
INSERT INTO "claims" VALUES('errors',1,NULL,'host','boot',1,'1',15.0,1.79609530097487378e+09,47237.726289714);
INSERT INTO "claims" VALUES('frontier',1,NULL,'host','boot',1,'1',15.0,1.79609530108896517e+09,47237.840380729);
INSERT INTO "claims" VALUES('listed',1,NULL,'host','boot',1,'1',15.0,1.79609530086544346e+09,47237.616859858);
INSERT INTO "claims" VALUES('loop',1,NULL,'host','boot',1,'1',15.0,1.79609530154656815e+09,47238.297983968);
INSERT INTO "claims" VALUES('lost',1,NULL,'host','boot',1,'1',15.0,1.79609530171046876e+09,47238.461884679);
INSERT INTO "claims" VALUES('map',1,NULL,'host','boot',1,'1',15.0,1.79609530074580931e+09,47237.497226277);
INSERT INTO "claims" VALUES('nested',1,NULL,'host','boot',1,'1',15.0,1.7960953012889924e+09,47238.040408515);
INSERT INTO "claims" VALUES('node',1,NULL,'host','boot',1,'1',15.0,1.79609530139345693e+09,47238.14487287);
INSERT INTO "claims" VALUES('own',1,NULL,'host','boot',1,'1',15.0,1.7960953012225821e+09,47237.97399789);
INSERT INTO "claims" VALUES('race',1,NULL,'host','boot',1,'1',15.0,1.79609530115292072e+09,47237.904336776);
CREATE TABLE commands (
        id INTEGER PRIMARY KEY, run INTEGER NOT NULL, epoch INTEGER NOT NULL, kind TEXT NOT NULL,
        arguments TEXT NOT NULL
    );
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
    , at REAL);
INSERT INTO "history" VALUES(1,1,0,'begun','titles','{"acts":["page"],"versions":["fetch=1,parse=1"],"keyed":true,"take":"title","into":"titles","shape":"by key","errors_into":null,"reduces":false,"grows":false,"until":"all"}',1.79609530077402281e+09);
INSERT INTO "history" VALUES(2,1,1,'update','titles','{"number":1,"do":[["set","titles",{"@":"StateMap","value":{}}]],"step":"titles"}',1.79609530077402281e+09);
INSERT INTO "history" VALUES(3,2,1,'update','fetch','{"number":1,"do":[["set","page","page 1"]],"step":"fetch"}',1.79609530078564715e+09);
INSERT INTO "history" VALUES(4,2,1,'completed','fetch','0',1.79609530078564715e+09);
INSERT INTO "history" VALUES(5,3,1,'update','fetch','{"number":1,"do":[["set","page","page 2"]],"step":"fetch"}',1.79609530079838085e+09);
INSERT INTO "history" VALUES(6,3,1,'completed','fetch','0',1.79609530079838085e+09);
INSERT INTO "history" VALUES(7,4,1,'update','fetch','{"number":1,"do":[["set","page","page 3"]],"step":"fetch"}',1.79609530081086826e+09);
INSERT INTO "history" VALUES(8,4,1,'completed','fetch','0',1.79609530081086826e+09);
INSERT INTO "history" VALUES(9,5,0,'begun','listed','{"acts":["fetch","both"],"versions":["fetch=1","fetch=1,parse=1"],"keyed":false,"take":["page"],"into":"out","shape":"by position and act","errors_into":null,"reduces":false,"grows":false,"until":"all"}',1.79609530088122749e+09);
INSERT INTO "history" VALUES(10,5,1,'update','listed','{"number":1,"do":[["set","out",{"@":"PositionedList","value":[],"at":[]}]],"step":"listed"}',1.79609530088122749e+09);
INSERT INTO "history" VALUES(11,7,1,'update','fetch','{"number":1,"do":[["set","page","page 1"]],"step":"fetch"}',1.79609530090104842e+09);
INSERT INTO "history" VALUES(12,7,1,'completed','fetch','0',1.79609530090104842e+09);
INSERT INTO "history" VALUES(13,9,1,'update','fetch','{"number":1,"do":[["set","page","page 2"]],"step":"fetch"}',1.79609530091298055e+09);
INSERT INTO "history" VALUES(14,9,1,'completed','fetch','0',1.79609530091298055e+09);
INSERT INTO "history" VALUES(15,11,1,'update','fetch','{"number":1,"do":[["set","page","page 3"]],"step":"fetch"}',1.79609530093296813e+09);
INSERT INTO "history" VALUES(16,11,1,'completed','fetch','0',1.79609530093296813e+09);
INSERT INTO "history" VALUES(17,12,0,'begun','odds','{"acts":["odd"],"versions":["odd=1"],"keyed":true,"take":"m","into":"odds","shape":"by key","errors_into":"bad","reduces":false,"grows":false,"until":"all"}',1.79609530099719429e+09);
INSERT INTO "history" VALUES(18,12,1,'update','odds','{"number":1,"do":[["set","odds",{"@":"StateMap","value":{}}],["set","bad",{"@":"StateMap","value":{}}]],"step":"odds"}',1.79609530099719429e+09);
INSERT INTO "history" VALUES(19,12,5,'completed','odds','5',1.79609530101716852e+09);
INSERT INTO "history" VALUES(20,12,5,'begun','looks','{"acts":["look"],"versions":["look=1"],"keyed":true,"take":"seen","into":"looks","shape":"by key","errors_into":null,"reduces":false,"grows":false,"until":"all"}',1.79609530102540445e+09);
INSERT INTO "history" VALUES(21,12,6,'update','looks','{"number":6,"do":[["set","looks",{"@":"StateMap","value":{}}]],"step":"looks"}',1.79609530102540445e+09);
INSERT INTO "history" VALUES(22,19,0,'begun','frontier','{"acts":["visit"],"versions":["visit=1"],"keyed":true,"take":null,"into":null,"shape":null,"errors_into":null,"reduces":true,"grows":true,"until":"all"}',1796095301.10143);
INSERT INTO "history" VALUES(23,24,0,'begun','answer','{"acts":["slow","quick"],"versions":["slow=1","quick=1"],"keyed":null,"take":null,"into":"answer","shape":"one","errors_into":null,"reduces":false,"grows":false,"until":"first(1)"}',1.79609530117356276e+09);
INSERT INTO "history" VALUES(24,24,1,'decision','answer','[["quick",""],[["quick",""]],"''quick'' decided fan-out ''answer''"]',1.79609530117356276e+09);
INSERT INTO "history" VALUES(25,24,1,'completed','answer','1',1.79609530118493461e+09);
INSERT INTO "history" VALUES(26,31,0,'begun','outer','{"acts":["inner"],"versions":["inner=page=fetch=1,parse=1"],"keyed":true,"take":"inner","into":"outer","shape":"by key","errors_into":null,"reduces":false,"grows":false,"until":"all"}',1.79609530130102801e+09);
INSERT INTO "history" VALUES(27,31,1,'update','outer','{"number":1,"do":[["set","outer",{"@":"StateMap","value":{}}]],"step":"outer"}',1.79609530130102801e+09);
INSERT INTO "history" VALUES(28,32,0,'begun','inner','{"acts":["page"],"versions":["fetch=1,parse=1"],"keyed":true,"take":"title","into":"inner","shape":"by key","errors_into":null,"reduces":false,"grows":false,"until":"all"}',1.79609530130931019e+09);
INSERT INTO "history" VALUES(29,32,1,'update','inner','{"number":1,"do":[["set","inner",{"@":"StateMap","value":{}}]],"step":"inner"}',1.79609530130931019e+09);
INSERT INTO "history" VALUES(30,33,1,'update','fetch','{"number":1,"do":[["set","page","page 2"]],"step":"fetch"}',1.79609530131707286e+09);
INSERT INTO "history" VALUES(31,33,1,'completed','fetch','0',1.79609530131707286e+09);
INSERT INTO "history" VALUES(32,34,1,'update','fetch','{"number":1,"do":[["set","page","page 3"]],"step":"fetch"}',1.79609530132902932e+09);
INSERT INTO "history" VALUES(33,34,1,'completed','fetch','0',1.79609530132902932e+09);
INSERT INTO "history" VALUES(34,36,0,'begun','titles','{"acts":["page"],"versions":["fetch=1,parse=1"],"keyed":true,"take":"title","into":"titles","shape":"by key","errors_into":null,"reduces":false,"grows":false,"until":"all"}',1.79609530141321229e+09);
INSERT INTO "history" VALUES(35,36,1,'update','titles','{"number":1,"do":[["set","titles",{"@":"StateMap","value":{}}]],"step":"titles"}',1.79609530141321229e+09);
INSERT INTO "history" VALUES(36,37,1,'update','fetch','{"number":1,"do":[["set","page","page 2"]],"step":"fetch"}',1.79609530142113709e+09);
INSERT INTO "history" VALUES(37,37,1,'completed','fetch','0',1.79609530142113709e+09);
INSERT INTO "history" VALUES(38,38,1,'update','fetch','{"number":1,"do":[["set","page","page 3"]],"step":"fetch"}',1.79609530142896509e+09);
INSERT INTO "history" VALUES(39,38,1,'completed','fetch','0',1.79609530142896509e+09);
INSERT INTO "history" VALUES(40,39,0,'asked','ask','["approve","May it be sent?","62b3dd5256d0b306b0cfb5570bb07661"]',1.79609530151725769e+09);
INSERT INTO "history" VALUES(41,40,1,'update','turn','{"number":1,"do":[["set","round",1]],"step":"turn"}',1.79609530156898832e+09);
INSERT INTO "history" VALUES(42,40,1,'completed','turn','0',1.79609530156898832e+09);
INSERT INTO "history" VALUES(43,41,0,'begun','Pages','{"acts":null,"versions":null,"keyed":null,"take":null,"into":null,"shape":null,"errors_into":null,"reduces":true,"grows":false,"until":"all"}',1.79609530162173843e+09);
INSERT INTO "history" VALUES(44,44,1,'update','fetch','{"number":1,"do":[["set","page","page 7"]],"step":"fetch"}',1.7960953016802988e+09);
INSERT INTO "history" VALUES(45,44,1,'completed','fetch','0',1.7960953016802988e+09);
INSERT INTO "history" VALUES(46,45,0,'begun','never','{"acts":["left","right"],"versions":["left=1","right=1"],"keyed":null,"take":"m","into":"never","shape":"one","errors_into":null,"reduces":false,"grows":false,"until":"first(1)"}',1.79609530174149155e+09);
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
CREATE TABLE reports (run INTEGER PRIMARY KEY, at REAL NOT NULL, text TEXT NOT NULL);
INSERT INTO "reports" VALUES(1,1.79609530083343076e+09,'{"run_id":"map","seconds":0.11156164600106422,"samples":2,"every":0.047,"spent":{"loop":0.008865624004101846,"store":0.10264484599611023,"reducer":5.1176000852137804e-05},"recent":{"loop":0.008622020875970486,"store":0.10084013231703907,"reducer":5.0634946064071745e-05},"limits":[{"owner":"titles","part":-1,"limits":"in flight","in_use":0,"slots":1,"waiting":0,"full":0.04755691699392628}],"peak":1,"is_over":true}');
INSERT INTO "reports" VALUES(5,1.79609530095345282e+09,'{"run_id":"listed","seconds":0.09103080099885119,"samples":1,"every":0.047,"spent":{"reducer":0.00025301599089289084,"other":0.0907777850079583},"recent":{"reducer":0.0002493226853628852,"other":0.08941424105617687},"limits":[{"owner":"listed","part":-1,"limits":"in flight","in_use":0,"slots":1,"waiting":0,"full":0.04708268399554072}],"peak":1,"is_over":true}');
INSERT INTO "reports" VALUES(12,1.7960953010567429e+09,'{"run_id":"errors","seconds":0.07923022800241597,"samples":1,"every":0.047,"spent":{"reducer":0.001992933997826185,"store":0.07723729400458978},"recent":{"reducer":0.001957831896129462,"store":0.07623530785250399},"peak":1,"is_over":true}');
INSERT INTO "reports" VALUES(19,1.79609530112796783e+09,'{"run_id":"frontier","seconds":0.04816224399837665,"samples":1,"every":0.047,"spent":{"reducer":0.00032990900217555463,"store":0.0478323349962011},"recent":{"reducer":0.0003272301648269674,"store":0.047450474103163595},"peak":1,"is_over":true}');
INSERT INTO "reports" VALUES(24,1.79609530119748663e+09,'{"run_id":"race","seconds":0.04768392500409391,"samples":1,"every":0.047,"spent":{"reducer":3.6003999412059784e-05,"store":0.04764792100468185},"recent":{"reducer":3.571672374688784e-05,"store":0.04727124868488668},"peak":1,"is_over":true}');
INSERT INTO "reports" VALUES(31,1.79609530136543154e+09,'{"run_id":"nested","seconds":0.08493319300032454,"samples":1,"every":0.047,"spent":{"reducer":2.5077002646867186e-05,"store":0.08490811599767767},"recent":{"reducer":2.474538562969466e-05,"store":0.08371743910882354},"slowest":[{"path":["nested","nested",["outer",0,"inner","a"]],"seconds":0.03606527200463461,"began":0.0290765929967165,"status":"failed"}],"limits":[{"owner":"outer","part":-1,"limits":"in flight","in_use":0,"slots":1,"waiting":0,"full":0.047801460001210216},{"owner":"inner","part":-1,"limits":"in flight","in_use":0,"slots":1,"waiting":0,"full":0.047801460001210216}],"peak":1,"is_over":true}');
INSERT INTO "reports" VALUES(35,1.79609530146074295e+09,'{"run_id":"node","seconds":0.06717510800081072,"samples":1,"every":0.047,"spent":{"reducer":1.9138999050483108e-05,"action":0.06715596900176024},"recent":{"reducer":1.8934434700426363e-05,"action":0.06640967322945016},"slowest":[{"path":["node","node",["node",0,"node",""],["titles",0,"page",3]],"seconds":0.00857033500506077,"began":0.03908112199860625,"status":"failed"}],"peak":1,"is_over":true}');
INSERT INTO "reports" VALUES(41,1.79609530164550399e+09,'{"run_id":"class","seconds":0.04754614100238541,"samples":1,"every":0.047,"spent":{"reducer":7.420000474667177e-05,"store":0.04747194099763874},"recent":{"reducer":7.360990839785906e-05,"store":0.047097741098636015},"peak":1,"is_over":true}');
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
    , error TEXT, secret TEXT NOT NULL DEFAULT '[]', spawned_by TEXT, spawner TEXT);
INSERT INTO "roots" VALUES(1,'map','3',1.79609530075361347e+09,1.79609530082565903e+09,'{"ns":[1,2,3,4]}',NULL,'{}',NULL,NULL,'ExceptionGroup: a child of fan-out ''titles'' failed: ConnectionError: parse 3, the first time','[]',NULL,NULL);
INSERT INTO "roots" VALUES(5,'listed','3',1.79609530087750911e+09,1.79609530094561553e+09,'{"ns":[1,2,3]}',NULL,'{}',NULL,NULL,'ExceptionGroup: a child of fan-out ''listed'' failed: ConnectionError: parse 3, the first time','[]',NULL,NULL);
INSERT INTO "roots" VALUES(12,'errors','3',1.79609530098949241e+09,1.79609530104932689e+09,'{"ns":[1,2,3,4]}',NULL,'{}',NULL,NULL,'ExceptionGroup: a child of fan-out ''looks'' failed: ConnectionError: look 2, the first time','[]',NULL,NULL);
INSERT INTO "roots" VALUES(19,'frontier','3',1.79609530109741663e+09,1.79609530112474894e+09,'{"starts":[1],"sum":0}',NULL,'{}',NULL,NULL,'ExceptionGroup: a child of fan-out ''frontier'' failed: ConnectionError: visit 4, the first time','[]',NULL,NULL);
INSERT INTO "roots" VALUES(24,'race','3',1.79609530116541552e+09,1.79609530118915176e+09,'{}',NULL,'{}',NULL,NULL,'ConnectionError: judge, the first time','[]',NULL,NULL);
INSERT INTO "roots" VALUES(27,'own','3',1.79609530123338985e+09,1.79609530125328326e+09,'{"ns":[1,2,3,4]}',NULL,'{}',NULL,NULL,'ConnectionError: a part failed','[]',NULL,NULL);
INSERT INTO "roots" VALUES(31,'nested','3',1.79609530129732966e+09,1.79609530135330629e+09,'{"ns":[2,3],"names":["a","b"]}',NULL,'{}',NULL,NULL,'ExceptionGroup: a child of fan-out ''outer'' failed: ConnectionError: parse 3, the first time','[]',NULL,NULL);
INSERT INTO "roots" VALUES(35,'node','3',1.79609530140545868e+09,1.79609530145303463e+09,'{"ns":[2,3]}',NULL,'{}',NULL,NULL,'ExceptionGroup: a child of fan-out ''titles'' failed: ConnectionError: parse 3, the first time','[]',NULL,NULL);
INSERT INTO "roots" VALUES(39,'asking','3',1.79609530150546574e+09,1.79609530152083897e+09,'{}',NULL,'{}',NULL,NULL,NULL,'[]',NULL,NULL);
INSERT INTO "roots" VALUES(40,'loop','3',1.79609530156560111e+09,1.79609530158026432e+09,'{"round":0}',NULL,'{}',NULL,NULL,'ConnectionError: turn 1, the first time','[]',NULL,NULL);
INSERT INTO "roots" VALUES(41,'class','3',1.79609530161347818e+09,1.79609530163736176e+09,'{"ns":[3,4,5],"sum":0}',NULL,'{}',NULL,NULL,'ExceptionGroup: a child of fan-out ''Pages'' failed: ConnectionError: visit 4, the first time','[]',NULL,NULL);
INSERT INTO "roots" VALUES(44,'done','3',1.79609530167745375e+09,1.79609530168484067e+09,'{"n":7}',NULL,'{}',NULL,NULL,NULL,'[]',NULL,NULL);
INSERT INTO "roots" VALUES(45,'lost','3',1.79609530173097682e+09,1.79609530174347567e+09,'{"n":5}',NULL,'{}',NULL,NULL,'NobodyAccepted: fan-out ''never'': none of its 2 children was accepted: Rejected: 5 was not accepted; Rejected: 5 was not accepted','[]',NULL,NULL);
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
    , ended_at REAL, failed_step TEXT);
INSERT INTO "runs" VALUES(1,0,0,'map',NULL,'failed',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "runs" VALUES(2,1,1,1,0,'succeeded',2,1,1,1.161563800269505e-02,0,0,'d379c5779fb7248f2f5487c5dac1a092',1,'1','"PAGE 1"',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "runs" VALUES(3,1,1,2,1,'succeeded',3,1,1,6.60952799808001145e-03,0,0,'7c2aeb9841702e99b8d8204b92428bf5',1,'2','"PAGE 2"',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "runs" VALUES(4,1,1,3,2,'failed',NULL,1,1,6.09258199983742088e-03,0,0,'c89701ccee1a4f755e20c3a40f0bd860',NULL,'3',NULL,NULL,NULL,'{"@":"error","@type":"builtins:ConnectionError","text":"parse 3, the first time","args":["parse 3, the first time"],"notes":["shoal: in action ''parse'' of ''titles'', key 3, run 0239d8408426d7ef679a062e7b8a3f50"],"trace":["/srv/app/tests/kept/programs.py:65, in programs.<locals>.parse", "/srv/app/tests/kept/programs.py:52, in World.note"]}',NULL,NULL,NULL,1.79609530081704449e+09,'parse');
INSERT INTO "runs" VALUES(5,0,0,'listed',NULL,'failed',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "runs" VALUES(6,5,2,0,0,'succeeded',2,1,1,1.4063799608265981e-04,0,0,'1fce372ffd347d6099ba9765fbf42c83',2,'1','{"page":"page 1"}',NULL,'{"number":1,"do":[["set","page","page 1"]],"step":"fetch"}',NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "runs" VALUES(7,5,3,0,1,'succeeded',3,1,1,4.03424000251106917e-03,0,0,'046eaa5bc46a2d620adcaafc4b3ba044',2,'1','{"page":"page 1"}',NULL,'{"number":2,"do":[["set","title","PAGE 1"]],"step":"parse"}',NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "runs" VALUES(8,5,2,1,2,'succeeded',4,1,1,1.02141995739657431e-04,0,0,'2ad0fdab3dac00d166c85f32e7f212f1',2,'2','{"page":"page 2"}',NULL,'{"number":1,"do":[["set","page","page 2"]],"step":"fetch"}',NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "runs" VALUES(9,5,3,1,3,'succeeded',5,1,1,3.88961600401671603e-03,0,0,'05a2c3a7bab52bb086e9e0ad16d33b79',2,'2','{"page":"page 2"}',NULL,'{"number":2,"do":[["set","title","PAGE 2"]],"step":"parse"}',NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "runs" VALUES(10,5,2,2,4,'succeeded',6,1,1,1.00307996035553514e-04,0,0,'b81d177187bc5c4106965dc6ad097352',2,'3','{"page":"page 3"}',NULL,'{"number":1,"do":[["set","page","page 3"]],"step":"fetch"}',NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "runs" VALUES(11,5,3,2,5,'failed',NULL,1,1,4.04399499529972672e-03,0,0,'ac3d96e841bbf2914451dd948ac1c40c',NULL,'3',NULL,NULL,NULL,'{"@":"error","@type":"builtins:ConnectionError","text":"parse 3, the first time","args":["parse 3, the first time"],"notes":["shoal: in action ''parse'' of ''listed'', key 2, run 4805127f7e773e017f0973e26cd96978"],"trace":["/srv/app/tests/kept/programs.py:65, in programs.<locals>.parse", "/srv/app/tests/kept/programs.py:52, in World.note"]}',NULL,NULL,NULL,1.79609530093708181e+09,'parse');
INSERT INTO "runs" VALUES(12,0,0,'errors',NULL,'failed',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "runs" VALUES(13,12,4,1,0,'succeeded',2,1,1,2.43641006818506866e-04,0,0,'8f8f2aab5a39d80dc98a18dfd4aec95d',3,'1','1',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "runs" VALUES(14,12,4,2,1,'failed',3,1,1,1.36801994813140481e-04,0,0,'9887b78cbe4cbafaa96d0a18557efe70',NULL,'2',NULL,'{"number":3,"do":[["put","bad",2,{"@":"dataclass","@type":"shoal:ErrorInfo","type":"ValueError","message":"2 is even","traceback":"Traceback (most recent call last):\n  File \"/srv/app/shoal/_engine/fanout/workers.py\", line 322, in _execute\n    waited = await drive(context.copy(), living, self._add_some)\n             ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^\n  File \"/srv/app/shoal/_concurrency/cancellation.py\", line 144, in drive\n    trap = run(step, argument)\n  File \"/srv/app/shoal/_engine/walk.py\", line 101, in walk\n    change = await _perform(run, act)\n             ^^^^^^^^^^^^^^^^^^^^^^^^\n  File \"/srv/app/shoal/_engine/call.py\", line 461, in _call\n    result = await cast(\"Any\", action.function(**kwargs))\n             ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^\n  File \"/srv/app/tests/kept/programs.py\", line 72, in odd\n    raise ValueError(f\"{n} is even\")\nValueError: 2 is even\nshoal: in action ''odd'' of ''odds'', key 2, run 658f9ef43d74f0aca349b4b85ba084f1\n"},1]],"step":"odds"}',NULL,'{"@":"error","@type":"builtins:ValueError","text":"2 is even","args":["2 is even"],"notes":["shoal: in action ''odd'' of ''odds'', key 2, run 658f9ef43d74f0aca349b4b85ba084f1"],"trace":["/srv/app/tests/kept/programs.py:72, in programs.<locals>.odd"]}',NULL,NULL,NULL,NULL,NULL);
INSERT INTO "runs" VALUES(15,12,4,3,2,'succeeded',4,1,1,1.6976199549390003e-04,0,0,'3f7bb79bef82f88ae629e5e723d95ce2',3,'3','3',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "runs" VALUES(16,12,4,4,3,'failed',5,1,1,1.59556999278720468e-04,0,0,'b07720adff570366168d1d6d42275f88',NULL,'4',NULL,'{"number":5,"do":[["put","bad",4,{"@":"dataclass","@type":"shoal:ErrorInfo","type":"ValueError","message":"4 is even","traceback":"Traceback (most recent call last):\n  File \"/srv/app/shoal/_engine/fanout/workers.py\", line 322, in _execute\n    waited = await drive(context.copy(), living, self._add_some)\n             ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^\n  File \"/srv/app/shoal/_concurrency/cancellation.py\", line 144, in drive\n    trap = run(step, argument)\n  File \"/srv/app/shoal/_engine/walk.py\", line 101, in walk\n    change = await _perform(run, act)\n             ^^^^^^^^^^^^^^^^^^^^^^^^\n  File \"/srv/app/shoal/_engine/call.py\", line 461, in _call\n    result = await cast(\"Any\", action.function(**kwargs))\n             ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^\n  File \"/srv/app/tests/kept/programs.py\", line 72, in odd\n    raise ValueError(f\"{n} is even\")\nValueError: 4 is even\nshoal: in action ''odd'' of ''odds'', key 4, run 44d6f0d1b1bab9204085056d6b8251df\n"},3]],"step":"odds"}',NULL,'{"@":"error","@type":"builtins:ValueError","text":"4 is even","args":["4 is even"],"notes":["shoal: in action ''odd'' of ''odds'', key 4, run 44d6f0d1b1bab9204085056d6b8251df"],"trace":["/srv/app/tests/kept/programs.py:72, in programs.<locals>.odd"]}',NULL,NULL,NULL,NULL,NULL);
INSERT INTO "runs" VALUES(17,12,5,1,0,'succeeded',7,1,1,2.15538995689712464e-04,0,0,'7acd07b61be554459a3508f336447283',4,'1','"2: ValueError, 4: ValueError"',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "runs" VALUES(18,12,5,2,1,'failed',NULL,1,1,8.86510024429299e-05,0,0,'931f3b67bc84d694a97d97a2bc842769',NULL,'2',NULL,NULL,NULL,'{"@":"error","@type":"builtins:ConnectionError","text":"look 2, the first time","args":["look 2, the first time"],"notes":["shoal: in action ''look'' of ''looks'', key 2, run 5523a3567d8193e035c6854bc44abf24"],"trace":["/srv/app/tests/kept/programs.py:77, in programs.<locals>.look", "/srv/app/tests/kept/programs.py:52, in World.note"]}',NULL,NULL,NULL,1.79609530104111528e+09,NULL);
INSERT INTO "runs" VALUES(19,0,0,'frontier',NULL,'failed',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "runs" VALUES(20,19,6,1,0,'succeeded',1,1,1,1.02693004009779542e-04,0,0,'3e89332a29ecfedc6f911502c1b8e086',5,'1','1','{"number":1,"do":[["add","sum",1]],"step":"frontier","found":[2,3],"at":1}',NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "runs" VALUES(21,19,6,2,1,'succeeded',2,1,1,9.73640053416602313e-05,0,0,'cd0a12076b5d0728bf284bbf738a9fec',5,'2','2','{"number":2,"do":[["add","sum",2]],"step":"frontier","found":[4,5],"at":3}',NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "runs" VALUES(22,19,6,3,2,'succeeded',3,1,1,7.96480017015710473e-05,0,0,'714a0ec60f74af596b809794cb9318c9',5,'3','3','{"number":3,"do":[["add","sum",3]],"step":"frontier","found":[6,7],"at":5}',NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "runs" VALUES(23,19,6,4,3,'failed',NULL,1,1,7.17760049155913293e-05,0,0,'d0dc73f09543cba602ed28c9ef722972',NULL,'4',NULL,NULL,NULL,'{"@":"error","@type":"builtins:ConnectionError","text":"visit 4, the first time","args":["visit 4, the first time"],"notes":["shoal: in action ''visit'' of ''frontier'', key 4, run b52b4b7faa6e17b0ad0569ddde0d2bb8"],"trace":["/srv/app/tests/kept/programs.py:82, in programs.<locals>.visit", "/srv/app/tests/kept/programs.py:52, in World.note"]}',NULL,NULL,NULL,1.7960953011210637e+09,NULL);
INSERT INTO "runs" VALUES(24,0,0,'race',NULL,'failed',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "runs" VALUES(25,24,7,'',1,'succeeded',1,1,1,8.90020019141957163e-05,0,0,'bbb80fec43b1f5dcefef101e2be46742',6,'null','"quick"','{"number":1,"do":[["set","answer","quick"]],"step":"answer"}',NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "runs" VALUES(26,24,8,'',0,'cancelled',NULL,1,1,5.92703599977539852e-03,0,0,'638aa63a9457ce98ea8ec6ffeb736e0a',NULL,'null',NULL,NULL,NULL,NULL,'''quick'' decided fan-out ''answer''','quick','',1.79609530117936944e+09,NULL);
INSERT INTO "runs" VALUES(27,0,0,'own',NULL,'failed',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "runs" VALUES(28,27,9,1,0,'succeeded',NULL,1,1,1.00469005701597779e-04,0,0,'90ed2f4756728f977f9e0f74da59cc57',7,'1','1',NULL,NULL,NULL,NULL,NULL,NULL,1.79609530123760557e+09,NULL);
INSERT INTO "runs" VALUES(29,27,9,2,1,'succeeded',NULL,1,1,1.01630001154262572e-04,0,0,'dc1182d2c1bec36ba9ace90bc91f4e53',7,'2','4',NULL,NULL,NULL,NULL,NULL,NULL,1.79609530124511957e+09,NULL);
INSERT INTO "runs" VALUES(30,27,9,3,2,'failed',NULL,1,1,7.62030031182803213e-05,0,0,'2d132bd2552cdf06282d131da72a6dd1',NULL,'3',NULL,NULL,NULL,'{"@":"error","@type":"builtins:ConnectionError","text":"square 3, the first time","args":["square 3, the first time"],"notes":["shoal: in action ''square'' of ''add/parts'', key 3, run b994043498ecaedbe6796eb3e2e5057a"],"trace":["/srv/app/tests/kept/programs.py:114, in programs.<locals>.square", "/srv/app/tests/kept/programs.py:52, in World.note"]}',NULL,NULL,NULL,1.79609530124912762e+09,NULL);
INSERT INTO "runs" VALUES(31,0,0,'nested',NULL,'failed',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "runs" VALUES(32,31,10,'a',0,'failed',NULL,1,1,3.60652720046346075e-02,0,0,'9951cd165c673a7286b9d74e74440675',NULL,'"a"',NULL,NULL,NULL,'{"@":"error","@type":"builtins:ExceptionGroup","text":"a child of fan-out ''inner'' failed (1 sub-exception)","args":["a child of fan-out ''inner'' failed",[{"@":"error","@type":"builtins:ConnectionError","text":"parse 3, the first time","args":["parse 3, the first time"],"notes":["shoal: in action ''parse'' of ''inner'', key 3, run 03fe2405cb2c1f93b6b991fa719210ad"]}]],"notes":["shoal: in action ''inner'' of ''outer'', key ''a'', run c359a81100ff7a25e432bfeecf3eaaa1"]}',NULL,NULL,NULL,1.79609530134516716e+09,NULL);
INSERT INTO "runs" VALUES(33,32,11,2,0,'succeeded',2,1,1,6.00340899836737662e-03,0,0,'7c2aeb9841702e99b8d8204b92428bf5',8,'2','"PAGE 2"',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "runs" VALUES(34,32,11,3,1,'failed',NULL,1,1,1.19943399986368604e-02,0,0,'c89701ccee1a4f755e20c3a40f0bd860',NULL,'3',NULL,NULL,NULL,'{"@":"error","@type":"builtins:ConnectionError","text":"parse 3, the first time","args":["parse 3, the first time"],"notes":["shoal: in action ''parse'' of ''inner'', key 3, run 03fe2405cb2c1f93b6b991fa719210ad"],"trace":["/srv/app/tests/kept/programs.py:65, in programs.<locals>.parse", "/srv/app/tests/kept/programs.py:52, in World.note"]}',NULL,NULL,NULL,1.79609530134104633e+09,'parse');
INSERT INTO "runs" VALUES(35,0,0,'node',NULL,'failed',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "runs" VALUES(36,35,12,'',0,'failed',NULL,1,1,3.21628970050369389e-02,0,0,'1fb978067919b2ff4fdc0413b554fecc',NULL,'null',NULL,NULL,NULL,'{"@":"error","@type":"builtins:ExceptionGroup","text":"a child of fan-out ''titles'' failed (1 sub-exception)","args":["a child of fan-out ''titles'' failed",[{"@":"error","@type":"builtins:ConnectionError","text":"parse 3, the first time","args":["parse 3, the first time"],"notes":["shoal: in action ''parse'' of ''titles'', key 3, run 0581c1c22961eb6553f4b6e3757fa6ec"]}]],"notes":["shoal: in action ''titles'' of ''node'', key '''', run d6ce7345aaa0d0aa349f67c92547d5b5"]}',NULL,NULL,NULL,1.79609530144511652e+09,'titles');
INSERT INTO "runs" VALUES(37,36,1,2,0,'succeeded',2,1,1,4.02576799388043582e-03,0,0,'7c2aeb9841702e99b8d8204b92428bf5',1,'2','"PAGE 2"',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "runs" VALUES(38,36,1,3,1,'failed',NULL,1,1,0.00857033500506077,0,0,'c89701ccee1a4f755e20c3a40f0bd860',NULL,'3',NULL,NULL,NULL,'{"@":"error","@type":"builtins:ConnectionError","text":"parse 3, the first time","args":["parse 3, the first time"],"notes":["shoal: in action ''parse'' of ''titles'', key 3, run 0581c1c22961eb6553f4b6e3757fa6ec"],"trace":["/srv/app/tests/kept/programs.py:65, in programs.<locals>.parse", "/srv/app/tests/kept/programs.py:52, in World.note"]}',NULL,NULL,NULL,1.79609530143791866e+09,'parse');
INSERT INTO "runs" VALUES(39,0,0,'asking',NULL,'halted',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "runs" VALUES(40,0,0,'loop',NULL,'failed',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "runs" VALUES(41,0,0,'class',NULL,'failed',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "runs" VALUES(42,41,13,3,0,'succeeded',1,1,1,1.06017003417946398e-04,0,0,'714a0ec60f74af596b809794cb9318c9',5,'{"n":3}','3','{"number":1,"do":[["add","sum",3]],"step":"Pages"}',NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "runs" VALUES(43,41,13,4,1,'failed',NULL,1,1,8.99029982974752783e-05,0,0,'d0dc73f09543cba602ed28c9ef722972',NULL,'{"n":4}',NULL,NULL,NULL,'{"@":"error","@type":"builtins:ConnectionError","text":"visit 4, the first time","args":["visit 4, the first time"],"notes":["shoal: in action ''visit'' of ''Pages'', key 4, run 771f69f5be2d744693ede17b009ba653"],"trace":["/srv/app/tests/kept/programs.py:82, in programs.<locals>.visit", "/srv/app/tests/kept/programs.py:52, in World.note"]}',NULL,NULL,NULL,1.79609530163330197e+09,NULL);
INSERT INTO "runs" VALUES(44,0,0,'done',NULL,'succeeded',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "runs" VALUES(45,0,0,'lost',NULL,'failed',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "runs" VALUES(46,45,14,'',0,'succeeded',NULL,0,1,1.6345200128853321e-04,0,0,'c8621c65e6d5ef1adf3080dde60716f1',9,'null','5',NULL,NULL,NULL,NULL,NULL,NULL,1.79609530174149155e+09,NULL);
INSERT INTO "runs" VALUES(47,45,15,'',1,'succeeded',NULL,0,1,8.24620001367293298e-05,0,0,'ee139d3aa09e69ada7555032bd65bb36',10,'null','5',NULL,NULL,NULL,NULL,NULL,NULL,1.79609530174149155e+09,NULL);
CREATE TABLE saves (
        run INTEGER NOT NULL, number INTEGER NOT NULL, at REAL, PRIMARY KEY (run, number)
    ) WITHOUT ROWID;
INSERT INTO "saves" VALUES(1,2,1.79609530079725599e+09);
INSERT INTO "saves" VALUES(1,3,1.79609530080501246e+09);
INSERT INTO "saves" VALUES(5,2,1796095300.89338);
INSERT INTO "saves" VALUES(5,3,1.79609530090509319e+09);
INSERT INTO "saves" VALUES(5,4,1.79609530090992164e+09);
INSERT INTO "saves" VALUES(5,5,1.79609530091689181e+09);
INSERT INTO "saves" VALUES(5,6,1.79609530092504882e+09);
INSERT INTO "saves" VALUES(12,5,1.79609530100743031e+09);
INSERT INTO "saves" VALUES(12,7,1.79609530103327822e+09);
INSERT INTO "saves" VALUES(19,1,1796095301.10143);
INSERT INTO "saves" VALUES(19,2,1.79609530110923147e+09);
INSERT INTO "saves" VALUES(19,3,1.79609530111311459e+09);
INSERT INTO "saves" VALUES(24,1,1.79609530117356276e+09);
INSERT INTO "saves" VALUES(32,2,1.7960953013230679e+09);
INSERT INTO "saves" VALUES(36,2,1.79609530142514252e+09);
INSERT INTO "saves" VALUES(41,1,1.79609530162173843e+09);
CREATE UNIQUE INDEX runs_by_key ON runs (parent, place, key);
CREATE INDEX runs_by_status ON runs (parent, status, applied);
CREATE INDEX history_by_number ON history (run, number);
CREATE INDEX results_by_end ON results (ends_at) WHERE ends_at IS NOT NULL;
CREATE INDEX commands_by_run ON commands (run);
CREATE INDEX roots_by_spawner ON roots (spawner) WHERE spawner IS NOT NULL;
CREATE INDEX history_questions ON history (run, number) WHERE kind IN ('asked', 'answered');
CREATE INDEX runs_by_end ON runs (parent, status, ended_at) WHERE ended_at IS NOT NULL;
CREATE VIEW root_runs AS
        SELECT runs.id, runs.key AS run_id, application, version,
            coalesce(status, 'running') AS status, reason, began_at, roots.ended_at, first,
            forked_from, forked_at, roots.error, spawned_by
        FROM runs JOIN roots ON roots.run = runs.id;
CREATE VIEW child_runs AS
        SELECT *, ended_at - elapsed AS began_at FROM (
            SELECT runs.id, parent, step, visit, act, key, position,
                coalesce(status, 'running') AS status, element, value,
                error ->> '@type' AS error_type, error ->> 'text' AS error_text, error, reason,
                applied, used, attempts, elapsed, abandoned, failed_step,
                coalesce(ended_at, (
                    SELECT at FROM saves WHERE run = parent AND number >= applied
                    ORDER BY number LIMIT 1
                )) AS ended_at
            FROM runs JOIN places ON places.id = place WHERE position IS NOT NULL
        );
COMMIT;
