"""Items of every task type, as the OpenAPI page shows them and clients are generated from it."""

from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict  # pydantic needs it before Python 3.12

from server.runware.envelope import ErrorObject


class ImageItem(TypedDict):
    """An image, or what became of its task so far.

    With `imageUUID` it is an image: finished with `seed` and a form of it, or `processing` with
    `progress`. Without, it acknowledges a task (`deliveryMethod` is `async`), or has the `cost` of
    a dry run. One shape for all of these, because no field distinguishes them.
    """

    taskType: Literal["imageInference"]
    taskUUID: str
    imageUUID: NotRequired[str]
    seed: NotRequired[Annotated[int, Field(ge=0)]]
    imageURL: NotRequired[Annotated[str, Field(description="With outputType `URL`.")]]
    imageBase64Data: NotRequired[Annotated[str, Field(description="With `base64Data`.")]]
    imageDataURI: NotRequired[Annotated[str, Field(description="With `dataURI`.")]]
    cost: NotRequired[Annotated[float, Field(description="In USD, with includeCost.")]]
    NSFWContent: NotRequired[Annotated[bool, Field(description="If the image was checked.")]]
    status: NotRequired[Literal["processing", "success"]]
    progress: NotRequired[Annotated[int, Field(ge=0, le=100, description="Of the task.")]]
    diagnostics: NotRequired[
        Annotated[dict[str, Any], Field(description="With X-Diagnostics: how it was generated.")]
    ]


class TaskResponse(TypedDict, total=False):
    """What a poll of a task answers."""

    data: list[ImageItem]
    errors: list[ErrorObject]


class TaskDetailsItem(TypedDict):
    """A task as it was sent, and its present response."""

    taskType: Literal["getTaskDetails"]
    taskUUID: str
    request: list[dict[str, Any]]
    response: TaskResponse


class CancelItem(TypedDict):
    """How a task ended; `cancelling` if it is about to, on another server."""

    taskType: Literal["cancelTask"]
    taskUUID: str
    status: Literal["cancelled", "success", "failed", "cancelling"]


class PingItem(TypedDict):
    """The answer to a ping."""

    taskType: Literal["ping"]
    taskUUID: NotRequired[str]
    pong: Literal[True]


class ImageUploadItem(TypedDict):
    """An image that is kept."""

    taskType: Literal["imageUpload"]
    taskUUID: NotRequired[str]
    imageUUID: str
    imageURL: str


class MediaStorageItem(TypedDict):
    """An image that is kept, under the other name."""

    taskType: Literal["mediaStorage"]
    taskUUID: NotRequired[str]
    mediaUUID: str
    mediaURL: str


class FoundModel(TypedDict):
    """A model that a search has found; one that draws only some things has a `vocabulary`.

    `maxInputImages` is how many images a task may bring, 0 if none.
    """

    air: str
    name: str
    version: str
    category: str
    architecture: str
    tags: list[str]
    heroImage: str
    private: bool
    comment: str
    type: str
    defaultWidth: int
    defaultHeight: int
    maxInputImages: int
    vocabulary: NotRequired[dict[str, list[str]]]


class ModelSearchItem(TypedDict):
    """The models that a search has found."""

    taskType: Literal["modelSearch"]
    taskUUID: NotRequired[str]
    results: list[FoundModel]
    totalResults: int


class AccountItem(TypedDict):
    """What is known of the key's account."""

    taskType: Literal["accountManagement"]
    taskUUID: NotRequired[str]
    operation: Literal["getDetails"]
    organizationUUID: str
    organizationName: str
    balance: float
    team: list[dict[str, Any]]
    apiKeys: list[dict[str, Any]]
    usage: dict[str, dict[str, float]]


class Answer(TypedDict):
    """Items of the tasks that succeeded, and errors of those that did not."""

    data: "list[AnyItem]"
    errors: NotRequired[list[ErrorObject]]


class Failure(TypedDict):
    """Errors alone; `error` repeats the first."""

    data: Annotated[list[Any], Field(max_length=0)]
    errors: Annotated[list[ErrorObject], Field(min_length=1)]
    error: ErrorObject


AnyItem = Annotated[
    ImageItem
    | TaskDetailsItem
    | CancelItem
    | PingItem
    | ImageUploadItem
    | MediaStorageItem
    | ModelSearchItem
    | AccountItem,
    Field(discriminator="taskType"),
]
