import sys

from durable import digest

from shoal import Application, Context, Graph, SQLiteStore, action


@action(reads=["summaries"], writes=["published"])
async def publish(summaries: dict[str, str], context: Context) -> bool:
    answer = await context.ask("approve", {"items": len(summaries)})
    if answer:
        print("published", len(summaries), "items")
    return bool(answer)


app = Application(
    Graph.chain(digest, publish, name="newsletter"),
    name="newsletter",
    store=SQLiteStore("newsletter.db"),
)

if __name__ == "__main__":
    answers = {"approve": sys.argv[1] == "yes"} if sys.argv[1:] else None
    result = app.run_sync(
        None if answers else {"urls": ["news/tide", "news/rain"]}, id="monday", answers=answers
    )
    print(result.status, [one.question for one in result.questions])
