/** Which rental the user means: that of the current notebook or console, else the only live one, else all live ones. */

import type { JupyterFrontEnd, JupyterFrontEndPlugin } from '@jupyterlab/application';
import type { ISessionContext } from '@jupyterlab/apputils';
import { type ISignal, Signal } from '@lumino/signaling';
import type { Widget } from '@lumino/widgets';
import { ICurrentRental, type IRental, IRentals } from './tokens';

/** Notebooks, consoles and other people's documents alike: whatever has a session context has a kernel. */
function contextOf(widget: Widget | null): ISessionContext | null {
  return (widget as { sessionContext?: ISessionContext } | null)?.sessionContext ?? null;
}

class CurrentRental implements ICurrentRental {
  constructor(
    shell: JupyterFrontEnd.IShell,
    private readonly rentals: IRentals
  ) {
    rentals.changed.connect(() => this._changed.emit());
    shell.currentChanged?.connect(() => this._follow(shell.currentWidget));
    this._follow(shell.currentWidget);
  }

  get changed(): ISignal<this, void> {
    return this._changed;
  }

  get shown(): readonly IRental[] {
    const own = this._kernelId === null ? null : this.rentals.ofKernel(this._kernelId);
    return own ? [own] : this.rentals.live();
  }

  private _follow(widget: Widget | null): void {
    this._context?.kernelChanged.disconnect(this._onKernelChanged, this);
    this._context = contextOf(widget);
    this._context?.kernelChanged.connect(this._onKernelChanged, this);
    this._kernelId = this._context?.session?.kernel?.id ?? null;
    this._changed.emit();
  }

  /** A kernel that went away is remembered until another one comes, so that its end and receipt stay in sight. */
  private _onKernelChanged(): void {
    this._kernelId = this._context?.session?.kernel?.id ?? this._kernelId;
    this._changed.emit();
  }

  private readonly _changed = new Signal<this, void>(this);
  private _context: ISessionContext | null = null;
  private _kernelId: string | null = null;
}

export const current: JupyterFrontEndPlugin<ICurrentRental> = {
  id: '@jupyter-depin/lab:current',
  description: 'Follows the rental of the current notebook or console.',
  autoStart: true,
  requires: [IRentals],
  provides: ICurrentRental,
  activate: (app: JupyterFrontEnd, rentals: IRentals): ICurrentRental => new CurrentRental(app.shell, rentals)
};
