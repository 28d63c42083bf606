-- The database of a server of commit 7908d5b, written by running it with an engine that generates nothing:
-- two tasks that succeeded, one that failed, one with a webhook call to come, an upload, and two running,
-- one of them with its first of three images.
BEGIN TRANSACTION;
CREATE TABLE images (
	image_uuid VARCHAR(36) NOT NULL, 
	task_uuid VARCHAR(36) NOT NULL, 
	position INTEGER NOT NULL, 
	name TEXT NOT NULL, 
	is_nsfw BOOLEAN, 
	expires_at FLOAT NOT NULL, 
	diagnostics JSON, 
	width INTEGER, 
	height INTEGER, 
	PRIMARY KEY (image_uuid)
);
INSERT INTO "images" VALUES('1f136df4-81c1-4785-a996-865be64e8853','00000000-0000-4000-8000-000000000001',0,'1f136df4-81c1-4785-a996-865be64e8853.png',NULL,1.7957111765551879406e+09,'{"cache": "none", "warnings": []}',1344,704);
INSERT INTO "images" VALUES('fe01e18b-208c-4124-a208-b80d2fd9608e','00000000-0000-4000-8000-000000000001',1,'fe01e18b-208c-4124-a208-b80d2fd9608e.png',NULL,1.79571117655724716189e+09,'{"cache": "none", "warnings": []}',1344,704);
INSERT INTO "images" VALUES('cb90150d-7fd1-4770-8551-d9850d71c87a','00000000-0000-4000-8000-000000000002',0,'cb90150d-7fd1-4770-8551-d9850d71c87a.jpg',NULL,1.79571117657064533235e+09,'{"cache": "none", "warnings": []}',1344,704);
INSERT INTO "images" VALUES('b80296cc-b323-4e47-ae65-6ee30e65712e','upload',0,'b80296cc-b323-4e47-ae65-6ee30e65712e.png',NULL,1.79571117715083909032e+09,'null',NULL,NULL);
INSERT INTO "images" VALUES('ac045b3a-45b8-4302-a6e3-53eb60e261ec','00000000-0000-4000-8000-000000000005',0,'ac045b3a-45b8-4302-a6e3-53eb60e261ec.jpg',NULL,1.79571117716253829e+09,'{"cache": "none", "warnings": []}',1024,1024);
INSERT INTO "images" VALUES('ef7ae97b-fbf9-4876-b68c-a17ac004cfb3','00000000-0000-4000-8000-000000000007',0,'ef7ae97b-fbf9-4876-b68c-a17ac004cfb3.jpg',NULL,1.79571117767237496375e+09,'{"cache": "none", "warnings": []}',1344,704);
CREATE TABLE tasks (
	task_uuid VARCHAR(36) NOT NULL, 
	owner VARCHAR(64) NOT NULL, 
	request JSON NOT NULL, 
	base_url TEXT NOT NULL, 
	seeds JSON NOT NULL, 
	image_uuids JSON NOT NULL, 
	status VARCHAR(8) NOT NULL, 
	error JSON, 
	created_at FLOAT NOT NULL, 
	holder VARCHAR(36), 
	held_until FLOAT, 
	progress INTEGER, 
	PRIMARY KEY (task_uuid)
);
INSERT INTO "tasks" VALUES('00000000-0000-4000-8000-000000000001','anybody','{"taskType": "imageInference", "taskUUID": "00000000-0000-4000-8000-000000000001", "model": "runware:180@1", "positivePrompt": "a red fox", "seed": 7, "numberResults": 2, "outputFormat": "PNG", "includeCost": true}','http://old.test:8000','["7", "8"]','["1f136df4-81c1-4785-a996-865be64e8853", "fe01e18b-208c-4124-a208-b80d2fd9608e"]','success','null',1.79562477654380750653e+09,'3ea7fbd8-6c26-4b5e-bfa3-8a7ea985e3c3',NULL,NULL);
INSERT INTO "tasks" VALUES('00000000-0000-4000-8000-000000000002','anybody','{"taskType": "imageInference", "taskUUID": "00000000-0000-4000-8000-000000000002", "model": "runware:180@1", "positivePrompt": "ein roter Fuchs \u72d0", "seed": 9223372036854776000, "outputType": ["base64Data"], "deliveryMethod": "async"}','http://old.test:8000','["9223372036854776000"]','["cb90150d-7fd1-4770-8551-d9850d71c87a"]','success','null',1.79562477656563043593e+09,'3ea7fbd8-6c26-4b5e-bfa3-8a7ea985e3c3',NULL,NULL);
INSERT INTO "tasks" VALUES('00000000-0000-4000-8000-000000000003','anybody','{"taskType": "imageInference", "taskUUID": "00000000-0000-4000-8000-000000000003", "model": "runware:180@1", "positivePrompt": "a red fox", "seed": 1, "deliveryMethod": "async"}','http://old.test:8000','["1"]','["c3fc919f-707e-442f-a74b-872a068573a4"]','error','{"code": "inferenceError", "message": "The image could not be generated.", "taskUUID": "00000000-0000-4000-8000-000000000003", "taskType": "imageInference"}',1.79562477657642269139e+09,'3ea7fbd8-6c26-4b5e-bfa3-8a7ea985e3c3',NULL,NULL);
INSERT INTO "tasks" VALUES('00000000-0000-4000-8000-000000000005','anybody','{"taskType": "imageInference", "taskUUID": "00000000-0000-4000-8000-000000000005", "model": "runware:180@1", "positivePrompt": "it stops after one", "width": 1024, "height": 1024, "seed": 11, "steps": 8, "CFGScale": 5.5, "numberResults": 3, "deliveryMethod": "async", "hunyuan": {"rewrite": "off"}}','http://old.test:8000','["11", "12", "13"]','["ac045b3a-45b8-4302-a6e3-53eb60e261ec", "efd0392b-af1d-40ae-9c2c-631be21e01ae", "84261299-274e-4415-b380-dfab388ff3d3"]','running','null',1.79562477715908861159e+09,'3ea7fbd8-6c26-4b5e-bfa3-8a7ea985e3c3',NULL,NULL);
INSERT INTO "tasks" VALUES('00000000-0000-4000-8000-000000000007','anybody','{"taskType": "imageInference", "taskUUID": "00000000-0000-4000-8000-000000000007", "model": "runware:180@1", "positivePrompt": "a red fox", "seed": 17, "webhookURL": "http://127.0.0.1:9/hook"}','http://old.test:8000','["17"]','["ef7ae97b-fbf9-4876-b68c-a17ac004cfb3"]','success','null',1.79562477767091774943e+09,'3ea7fbd8-6c26-4b5e-bfa3-8a7ea985e3c3',NULL,NULL);
INSERT INTO "tasks" VALUES('00000000-0000-4000-8000-000000000006','anybody','{"taskType": "imageInference", "taskUUID": "00000000-0000-4000-8000-000000000006", "model": "runware:180@1", "positivePrompt": "a red fox", "seed": 13, "scheduler": "UniPC", "deliveryMethod": "async", "acceleratorOptions": {"teaCache": true, "teaCacheDistance": 0.3}}','http://old.test:8000','["13"]','["918a8caf-4fec-46f3-85e4-9528c983d2ca"]','running','null',1.79562478068965697287e+09,'3ea7fbd8-6c26-4b5e-bfa3-8a7ea985e3c3',NULL,NULL);
CREATE TABLE webhooks (
	id INTEGER NOT NULL, 
	task_uuid VARCHAR(36) NOT NULL, 
	position INTEGER NOT NULL, 
	url TEXT NOT NULL, 
	body JSON NOT NULL, 
	num_tries INTEGER NOT NULL, 
	next_try_at FLOAT NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "webhooks" VALUES(1,'00000000-0000-4000-8000-000000000007',0,'http://127.0.0.1:9/hook','{"data": [{"taskType": "imageInference", "taskUUID": "00000000-0000-4000-8000-000000000007", "imageUUID": "ef7ae97b-fbf9-4876-b68c-a17ac004cfb3", "seed": 17, "imageURL": "http://old.test:8000/images/ef7ae97b-fbf9-4876-b68c-a17ac004cfb3.jpg"}]}',1,1.79562477975917220117e+09);
CREATE INDEX ix_tasks_status ON tasks (status);
CREATE INDEX ix_tasks_created_at ON tasks (created_at);
CREATE INDEX ix_images_task_uuid ON images (task_uuid);
CREATE INDEX ix_images_expires_at ON images (expires_at);
CREATE INDEX ix_webhooks_next_try_at ON webhooks (next_try_at);
COMMIT;
