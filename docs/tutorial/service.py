from approved import app
from fastapi import FastAPI

from shoal import Limits, Runtime
from shoal.fastapi import runs_router, runtime_lifespan

runtime = Runtime(apps=[app], limits=Limits(50))
service = FastAPI(lifespan=runtime_lifespan(runtime))
service.include_router(runs_router(app, authorize=None))
