from fastapi.testclient import TestClient
from service import service

with TestClient(service) as client:  # starts the service, as a server would
    asked = {"id": "tuesday", "state": {"urls": ["news/tide", "news/rain"]}}
    run = client.post("/runs/wait", json=asked).json()
    if run["status"] == "halted":  # the first time
        print(run["status"], run["questions"])
        answers = {"answers": [{"name": "approve", "value": True}]}
        client.post("/runs/tuesday/answers", json=answers).raise_for_status()
        run = client.post("/runs/wait", json=asked).json()
    print(run["status"], run["state"]["published"])
